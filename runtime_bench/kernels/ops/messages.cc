// Messages tabulated, when a session is made.
#include <math.h>

#include "graph_kernels.h"

static int32_t larger(int32_t a, int32_t b) { return a > b ? a : b; }
static int32_t smaller(int32_t a, int32_t b) { return a < b ? a : b; }

static uint32_t twice(int32_t number) { return (uint32_t)number << 16 | (uint32_t)number; }

// A line with this slope (in 2^-16 of the factor) that gives all of `code`, or false. Each x leaves some offsets, in
// 2^-8: those that put it between its code and the next one; where the code is the lowest or the highest, clamping does
// the rest.
static bool fits(const uint8_t* code, int32_t slope, int32_t factor, int32_t low, int32_t high, MessageTables* out,
                 MessageLine* line) {
  int32_t least = INT32_MIN, most = INT32_MAX;
  for (int32_t x = 0; x < 256; ++x) {
    const int32_t up_to_x = (x * slope >> 8) * factor;
    if (code[x] > low) least = larger(least, 256 * code[x] - up_to_x);
    if (code[x] < high) most = smaller(most, 256 * code[x] + 255 - up_to_x);
    if (least > most) return false;
  }
  const int32_t offset = least == INT32_MIN ? most : most == INT32_MAX ? least : least + (most - least) / 2;
  const int32_t lowest = 256 * low - offset, highest = 256 * high + 255 - offset;
  if (low == high || highest < 0 || lowest > 0xffff * factor) return false;
  out->steep |= lowest > 0 || highest < 255 * slope >> 8 || factor > 1;
  *line = {twice(slope), twice(offset & 0xffff), twice(lowest > 0 ? (lowest + factor - 1) / factor : 0),
           twice(smaller(highest / factor, 0xffff)), twice(factor)};
  return true;
}

static const int32_t kNear = 6; /* how far from the multiplier's own slope a line is looked for */

void fill_message_tables(int32_t x_zp, int32_t w_zp, const Requantise* message, MessageTables* out) {
  const Requantise q = *message;
  out->steep = out->any_missing = false;
  for (int32_t w = 0; w < 256; ++w) {
    uint8_t* code = out->code[w];
    for (int32_t x = 0; x < 256; ++x) {
      /* As QLinearMul: the zero point comes before the rounding, which takes halves to even codes. */
      float scaled = (float)((x - x_zp) * (w - w_zp)) * q.multiplier + (float)q.zp;
      scaled = scaled > (float)q.low ? scaled : (float)q.low;
      scaled = scaled < (float)q.high ? scaled : (float)q.high;
      code[x] = (uint8_t)nearbyintf(scaled);
    }
    MessageLine* line = &out->line[w];
    *line = {0, 0, 0, 0, 0};
    float slope = (float)(w - w_zp) * q.multiplier * 65536.0f;
    int32_t factor = 1;
    for (; slope >= 65536 + kNear && factor < 64; factor *= 2) slope /= 2;
    bool found = false;
    for (int32_t by = 0; by <= kNear && slope >= 0 && slope < 65536 + kNear && !found; ++by) {
      for (int32_t sign = -1; sign <= 1 && !found; sign += 2) {
        const int32_t near = (int32_t)slope + sign * by;
        found = near >= 0 && near <= 0xffff && fits(code, near, factor, q.low, q.high, out, line);
      }
    }
    out->missing[w] = !found;
    out->any_missing |= !found;
  }
}
