/* The flexbuffer format (flatbuffers' documentation, "FlexBuffers"): a buffer ends with the root's value, its packed
 * type (type << 2 | log2 of the byte width) and the width of the value. Offsets point backwards. A map is a vector of
 * values followed by one packed type each; before it stand its length, the width of its keys and an offset to them. */
#include "options.h"

namespace {

enum FlexType { kInt = 1, kUInt = 2, kText = 5, kIndirectInt = 6, kIndirectUInt = 7, kMap = 9, kBool = 26 };

struct Bytes {
  const uint8_t* data;
  size_t size;
};

bool inside(Bytes bytes, size_t at, size_t count) { return at <= bytes.size && count <= bytes.size - at; }

bool read_unsigned(Bytes bytes, size_t at, size_t width, uint64_t* value) {
  if (!inside(bytes, at, width)) return false;
  *value = 0;
  for (size_t i = 0; i < width; ++i) *value |= (uint64_t)bytes.data[at + i] << (8 * i);
  return true;
}

/* Follows the offset that is stored at `at`. */
bool follow(Bytes bytes, size_t at, size_t width, size_t* target) {
  uint64_t offset;
  if (!read_unsigned(bytes, at, width, &offset) || offset > at) return false;
  *target = at - offset;
  return true;
}

bool read_integer(Bytes bytes, size_t at, size_t width, uint8_t packed_type, int64_t* value) {
  int type = packed_type >> 2;
  if (type == kIndirectInt || type == kIndirectUInt) {
    if (!follow(bytes, at, width, &at)) return false;
    width = (size_t)1 << (packed_type & 3);
    type = type == kIndirectInt ? kInt : kUInt;
  }
  uint64_t raw;
  if ((type != kInt && type != kUInt && type != kBool) || !read_unsigned(bytes, at, width, &raw)) return false;
  const int unused = 64 - 8 * (int)width;
  if (type == kInt) {
    *value = (int64_t)(raw << unused) >> unused;
    return true;
  }
  *value = (int64_t)raw;
  return *value >= 0;
}

bool key_equals(Bytes bytes, size_t at, const char* key) {
  for (;; ++at, ++key) {
    if (at >= bytes.size || bytes.data[at] != (uint8_t)*key) return false;
    if (*key == 0) return true;
  }
}

struct Found {
  size_t at, width;
  uint8_t packed_type;
};


/* Where the value of a key stands. */
OptionResult find(Bytes bytes, const char* key, Found* found) {
  const size_t size = bytes.size;
  if (bytes.size < 3) return kOptionsBroken;
  const size_t root_width = bytes.data[size - 1];
  const uint8_t root_type = bytes.data[size - 2];
  const bool width_is_valid = root_width == 1 || root_width == 2 || root_width == 4 || root_width == 8;
  size_t map;
  if (!width_is_valid || root_type >> 2 != kMap || size - 2 < root_width ||
      !follow(bytes, size - 2 - root_width, root_width, &map)) {
    return kOptionsBroken;
  }
  const size_t width = (size_t)1 << (root_type & 3);
  uint64_t count, key_width;
  size_t keys;
  if (map < 3 * width || !read_unsigned(bytes, map - width, width, &count) ||
      !read_unsigned(bytes, map - 2 * width, width, &key_width) ||
      !follow(bytes, map - 3 * width, width, &keys) ||
      (key_width != 1 && key_width != 2 && key_width != 4 && key_width != 8) ||
      count > bytes.size || !inside(bytes, map, count * (width + 1)) || !inside(bytes, keys, count * key_width)) {
    return kOptionsBroken;
  }
  for (size_t i = 0; i < count; ++i) {
    size_t name;
    if (!follow(bytes, keys + i * key_width, key_width, &name)) return kOptionsBroken;
    if (!key_equals(bytes, name, key)) continue;
    *found = {map + i * width, width, bytes.data[map + count * width + i]};
    return kOptionRead;
  }
  return kOptionMissing;
}

} /* namespace */

OptionResult read_option(const uint8_t* data, size_t size, const char* key, int64_t* value) {
  const Bytes bytes = {data, data ? size : 0};
  Found found;
  const OptionResult result = find(bytes, key, &found);
  if (result != kOptionRead) return result;
  return read_integer(bytes, found.at, found.width, found.packed_type, value) ? kOptionRead : kOptionNoInteger;
}

OptionResult read_text(const uint8_t* data, size_t size, const char* key, char* text, size_t most) {
  const Bytes bytes = {data, data ? size : 0};
  Found found;
  const OptionResult result = find(bytes, key, &found);
  if (result != kOptionRead) return result;
  size_t at;
  if (found.packed_type >> 2 != kText || !follow(bytes, found.at, found.width, &at)) return kOptionNoInteger;
  for (size_t i = 0; i < most && at + i < bytes.size; ++i) {
    text[i] = (char)bytes.data[at + i];
    if (!text[i]) return kOptionRead;
  }
  return kOptionNoInteger;
}
