/* A CUDA driver library without a device: every call succeeds and does nothing.
 *
 * Triton's own driver and its C launcher run on top of it unchanged, so that the host cost of a
 * launch can be measured where no GPU is. Only what Triton's driver calls is here. Prototypes are
 * written with plain types: the library is found by name, never by a header.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HANDLE ((void *)(uintptr_t)0x1000)
#define EXPORT __attribute__((visibility("default")))

static uint64_t launches;

/* Kernels launched since the library was loaded. */
EXPORT uint64_t stub_launches(void) { return launches; }

/* Launches: the work of the real functions is on the device, but for a few hundred ns. */
EXPORT int cuLaunchKernelEx(const void *config, void *function, void **arguments, void **extra) {
    (void)config, (void)function, (void)arguments, (void)extra;
    launches++;
    return 0;
}

EXPORT int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                          unsigned by, unsigned bz, unsigned shared, void *stream,
                          void **arguments, void **extra) {
    (void)function, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz;
    (void)shared, (void)stream, (void)arguments, (void)extra;
    launches++;
    return 0;
}

/* Errors and versions. */
EXPORT int cuInit(unsigned flags) { return (void)flags, 0; }
EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
EXPORT int cuGetErrorString(int error, const char **text) {
    return (void)error, *text = "no device is behind this library", 0;
}

/* One device, an H200 by its figures. */
EXPORT int cuDeviceGetCount(int *count) { return *count = 1, 0; }
EXPORT int cuDeviceGet(int *device, int ordinal) { return *device = ordinal, 0; }

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 8: *value = 49152; break;   /* shared memory per block */
    case 10: *value = 32; break;     /* warp size */
    case 12: *value = 65536; break;  /* registers per block */
    case 16: *value = 132; break;    /* multiprocessors */
    case 75: *value = 9; break;      /* compute capability, major */
    case 76: *value = 0; break;      /* and minor */
    case 81: *value = 233472; break; /* shared memory per multiprocessor */
    case 97: *value = 232448; break; /* shared memory per block, opt-in */
    default: *value = 1024;
    }
    return 0;
}

/* Contexts and streams. */
EXPORT int cuDevicePrimaryCtxRetain(void **context, int device) {
    return (void)device, *context = HANDLE, 0;
}
EXPORT int cuCtxGetCurrent(void **context) { return *context = HANDLE, 0; }
EXPORT int cuCtxSetCurrent(void *context) { return (void)context, 0; }
EXPORT int cuCtxGetDevice(int *device) { return *device = 0, 0; }
EXPORT int cuCtxGetLimit(size_t *value, int limit) { return (void)limit, *value = 0, 0; }
EXPORT int cuCtxSetLimit(int limit, size_t value) { return (void)limit, (void)value, 0; }
EXPORT int cuStreamIsCapturing(void *stream, int *status) { return (void)stream, *status = 0, 0; }

/* Modules and functions. */
EXPORT int cuModuleLoadData(void **module, const void *image) {
    return (void)image, *module = HANDLE, 0;
}
EXPORT int cuModuleUnload(void *module) { return (void)module, 0; }
EXPORT int cuModuleGetFunction(void **function, void *module, const char *name) {
    return (void)module, (void)name, *function = HANDLE, 0;
}
EXPORT int cuFuncGetAttribute(int *value, int attribute, void *function) {
    /* threads per block at most; then shared memory, registers and the like */
    return (void)function, *value = attribute == 0 ? 1024 : 0, 0;
}
EXPORT int cuFuncSetAttribute(void *function, int attribute, int value) {
    return (void)function, (void)attribute, (void)value, 0;
}
EXPORT int cuFuncSetCacheConfig(void *function, int config) {
    return (void)function, (void)config, 0;
}
EXPORT int cuOccupancyMaxActiveClusters(int *count, void *function, const void *config) {
    return (void)function, (void)config, *count = 1, 0;
}

/* Any address counts as device memory: the tensors are on the CPU and nobody follows it. */
EXPORT int cuPointerGetAttribute(void *data, int attribute, uint64_t pointer) {
    (void)attribute;
    memcpy(data, &pointer, sizeof pointer);
    return 0;
}
EXPORT int cuPointerGetAttributes(unsigned count, int *attributes, void **data, uint64_t pointer) {
    (void)attributes;
    for (unsigned index = 0; index < count; index++) {
        memcpy(data[index], &pointer, sizeof pointer);
    }
    return 0;
}
EXPORT int cuTensorMapEncodeTiled(void *map) { return (void)map, 0; }
EXPORT int cuTensorMapEncodeIm2col(void *map) { return (void)map, 0; }
