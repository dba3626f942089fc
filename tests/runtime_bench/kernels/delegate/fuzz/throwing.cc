// A request for more memory than there is throws std::bad_alloc, as it does in a program without a sanitizer: the
// sanitizer's own operator new ends the program there, and a runtime that catches bad_alloc would seem to crash.
// Loaded before the sanitizer's library; the memory itself is the sanitizer's malloc.
#include <stdlib.h>

#include <new>

namespace {
void* take(size_t bytes) {
  if (void* memory = malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void* take(size_t bytes, std::align_val_t align) {
  void* memory = nullptr;
  if (posix_memalign(&memory, static_cast<size_t>(align), bytes ? bytes : 1) == 0) return memory;
  throw std::bad_alloc();
}
}  // namespace

// All forms are replaced: memory of a form that is not would come from the sanitizer and be freed here, a mismatch to it.
void* operator new(size_t bytes) { return take(bytes); }
void* operator new[](size_t bytes) { return take(bytes); }
void* operator new(size_t bytes, std::align_val_t align) { return take(bytes, align); }
void* operator new[](size_t bytes, std::align_val_t align) { return take(bytes, align); }
void* operator new(size_t bytes, const std::nothrow_t&) noexcept { return malloc(bytes ? bytes : 1); }
void* operator new[](size_t bytes, const std::nothrow_t&) noexcept { return malloc(bytes ? bytes : 1); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { free(memory); }
void operator delete(void* memory) noexcept { free(memory); }
void operator delete[](void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }
void operator delete[](void* memory, size_t) noexcept { free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { free(memory); }
void operator delete[](void* memory, size_t, std::align_val_t) noexcept { free(memory); }
