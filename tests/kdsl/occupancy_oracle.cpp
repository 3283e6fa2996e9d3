// Reads one launch a line, "major minor smem_sm smem_optin threads_sm registers shared threads", and
// prints how many blocks NVIDIA's own occupancy header fits on a multiprocessor.
#include <cstdio>

#include "cuda_occupancy.h"

int main() {
    int major, minor, threads_sm, registers, threads;
    long smem_sm, smem_optin, shared;
    while (std::scanf("%d %d %ld %ld %d %d %ld %d", &major, &minor, &smem_sm, &smem_optin,
                      &threads_sm, &registers, &shared, &threads) == 8) {
        cudaOccDeviceProp device;
        device.computeMajor = major;
        device.computeMinor = minor;
        device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = threads_sm;
        device.regsPerBlock = 65536;
        device.regsPerMultiprocessor = 65536;
        device.warpSize = 32;
        device.sharedMemPerBlock = 48 * 1024;
        device.sharedMemPerMultiprocessor = smem_sm;
        device.numSms = 1;
        device.sharedMemPerBlockOptin = smem_optin;
        device.reservedSharedMemPerBlock = 1024;
        cudaOccFuncAttributes kernel;
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.sharedSizeBytes = 0;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = shared;
        kernel.numBlockBarriers = 1;
        cudaOccDeviceState state;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        cudaOccResult result;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads,
                                                    shared) != CUDA_OCC_SUCCESS)
            std::puts("-1");
        else
            std::printf("%d\n", result.activeBlocksPerMultiprocessor);
    }
}
