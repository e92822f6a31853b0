// Stands in for the CUDA runtime and driver: hands out addresses, counts bytes, and does nothing else.
// PyTorch's allocator never looks behind an address, so it runs as on a device.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static size_t capacity, total, used;
static int upwards;
static uintptr_t lowest = 0x7f0000000000, highest = 0x7f0000000000;
static struct { uintptr_t address; size_t size; } live[65536];
static int count;

void stand_in_setup(size_t device_capacity, size_t device_total, int ascending) {
  capacity = device_capacity, total = device_total, upwards = ascending;
}

static int take(size_t size) {
  if (used + size > capacity) return 2;  // cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY
  used += size;
  return 0;
}

static uintptr_t place(size_t size) {
  if (upwards) return (highest += size) - size;
  return lowest -= size;
}

int cudaMalloc(void **pointer, size_t size) {
  *pointer = NULL;
  if (take(size)) return 2;
  if (count == 65536) abort();
  live[count].address = place(size);
  live[count].size = size;
  *pointer = (void *)live[count++].address;
  return 0;
}

int cudaFree(void *pointer) {
  for (int i = 0; i < count; i++)
    if (live[i].address == (uintptr_t)pointer) {
      used -= live[i].size;
      live[i] = live[--count];
      return 0;
    }
  abort();
}

int cudaGetDevice(int *device) { return *device = 0; }
int cudaGetDeviceCount(int *devices) { *devices = 1; return 0; }
int cudaMemGetInfo(size_t *free_bytes, size_t *all) { *free_bytes = capacity - used; *all = total; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { return *status = 0; }
const char *cudaGetErrorString(int error) { return "error"; }
const char *cudaGetErrorName(int error) { return "error"; }
// cudaDeviceProp: name[256], uuid[16], luid[8], luidDeviceNodeMask, totalGlobalMem. The rest is not read.
int cudaGetDeviceProperties(void *properties, int device) { memcpy((char *)properties + 288, &total, sizeof total); return 0; }
int cudaGetDeviceProperties_v2(void *properties, int device) { return cudaGetDeviceProperties(properties, device); }

// The driver: a handle of physical memory is its size.
static int nothing(void) { return 0; }
static int attribute(int *value, int which, int device) { return *value = 0; }
static int reserve(uintptr_t *pointer, size_t size, size_t a, uintptr_t b, unsigned long long c) { *pointer = place(size); return 0; }
static int create(uint64_t *handle, size_t size, const void *a, unsigned long long b) { *handle = size; return take(size); }
static int release(uint64_t handle) { used -= handle; return 0; }
static int error_string(int error, const char **text) { *text = "error"; return 0; }

int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned a, unsigned long long b, int *found) {
  *function = !strcmp(name, "cuDeviceGetAttribute") ? (void *)attribute
            : !strcmp(name, "cuMemAddressReserve")  ? (void *)reserve
            : !strcmp(name, "cuMemCreate")          ? (void *)create
            : !strcmp(name, "cuMemRelease")         ? (void *)release
            : !strcmp(name, "cuGetErrorString")     ? (void *)error_string
                                                    : (void *)nothing;
  if (found) *found = 0;
  return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **function, unsigned long long a, int *found) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, a, found);
}
