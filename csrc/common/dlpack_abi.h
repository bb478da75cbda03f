// The part of the DLPack binary interface that tensor_arg.h reads: plain C layouts fixed by the DLPack specification
// (https://dmlc.github.io/dlpack/latest/c_api.html), declared here so that nothing has to be vendored.
#pragma once

#include <cstdint>

namespace specbranch::dlpack {

constexpr int32_t kCpu = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13;
constexpr uint8_t kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kBool = 6;
constexpr uint64_t kReadOnly = 1;

struct Version {
  uint32_t major, minor;
};

struct Device {
  int32_t type, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; nullptr (before version 1.2): contiguous
  uint64_t byte_offset;
};

struct Managed {  // inside a capsule named "dltensor"
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct ManagedVersioned {  // inside a capsule named "dltensor_versioned"
  Version version;
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

// The C exchange API: a table of functions that a tensor type offers as __dlpack_c_exchange_api__.
struct ExchangeApi {
  Version version;
  ExchangeApi* previous;
  void* allocate;
  int (*export_owned)(void* object, ManagedVersioned** out);
  void* import_owned;
  int (*export_view)(void* object, Tensor* out);  // may be nullptr
  int (*current_stream)(int32_t device_type, int32_t device_id, void** stream);
};

}  // namespace specbranch::dlpack
