// Reads the operations of a program, runs them through PyTorch's own allocator, and prints six numbers after each:
// allocated, reserved, their peaks, num_alloc_retries, num_ooms.
//     drive CAPACITY TOTAL_MEMORY FRACTION ASCENDING < operations
#include <c10/cuda/CUDACachingAllocator.h>
#if __has_include(<c10/cuda/PeerToPeerAccess.h>)
#include <c10/cuda/PeerToPeerAccess.h>
#define HAS_PEERS
#endif
#include <iostream>
#include <string>
#include <unistd.h>
#include <vector>

extern "C" void stand_in_setup(size_t capacity, size_t total, int ascending);

int main(int, char** given) {
  stand_in_setup(std::stoull(given[1]), std::stoull(given[2]), std::stoi(given[4]));
#ifdef HAS_PEERS
  c10::cuda::detail::init_p2p_access_cache(1);
#endif
  auto* allocator = c10::cuda::CUDACachingAllocator::get();
  allocator->init(1);
  allocator->setMemoryFraction(std::stod(given[3]), 0);
  std::vector<void*> pointers;
  std::string operation;
  while (std::cin >> operation) {
    if (operation == "empty") {
      allocator->emptyCache({0, 0});
    } else if (operation == "reset") {
      allocator->resetPeakStats(0);
    } else if (operation[0] == 'f') {
      if (void* pointer = pointers.at(std::stoul(operation.substr(1)) - 1)) allocator->raw_delete(pointer);
    } else {
      auto at = operation.find('@');
      size_t stream = at == std::string::npos ? 0 : std::stoul(operation.substr(at + 1));
      try {
        // Any number will do for a stream that nothing runs on.
        pointers.push_back(allocator->raw_alloc_with_stream(
            std::stoull(operation.substr(1, at)), reinterpret_cast<cudaStream_t>(stream)));
      } catch (const c10::OutOfMemoryError&) {
        pointers.push_back(nullptr);
      }
    }
    auto stats = allocator->getDeviceStats(0);
    std::cout << stats.allocated_bytes[0].current << ' ' << stats.reserved_bytes[0].current << ' '
              << stats.allocated_bytes[0].peak << ' ' << stats.reserved_bytes[0].peak << ' '
              << stats.num_alloc_retries << ' ' << stats.num_ooms << '\n';
  }
  std::cout.flush();
  _exit(0);  // the allocator's end would talk to a device
}
