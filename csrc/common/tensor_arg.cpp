#include "common/tensor_arg.h"

#include <vector>

namespace py = pybind11;

namespace specbranch {
namespace {

// How objects of one Python type are read; found once per type.
struct Importer {
  PyTypeObject* type;  // kept alive by the cache
  const dlpack::ExchangeApi* api;
  bool is_torch;
  bool has_buffer;
};

const dlpack::ExchangeApi* find_exchange_api(PyTypeObject* type) {
  py::object capsule =
      py::getattr(py::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__", py::none());
  if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) return nullptr;
  auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
  while (api != nullptr && api->version.major != 1) api = api->previous;
  return api != nullptr && api->export_view != nullptr ? api : nullptr;
}

bool is_torch_tensor(PyTypeObject* type) {
  PyObject* torch = PyDict_GetItemString(PyImport_GetModuleDict(), "torch");
  if (torch == nullptr) return false;
  py::object tensor = py::getattr(torch, "Tensor", py::none());
  return PyType_Check(tensor.ptr()) && PyType_IsSubtype(type, reinterpret_cast<PyTypeObject*>(tensor.ptr()));
}

const Importer& importer_of(PyTypeObject* type) {
  static auto* cache = new std::vector<Importer>();  // leaked: types may outlive static destruction
  for (const Importer& entry : *cache) {
    if (entry.type == type) return entry;
  }
  Importer entry{type, find_exchange_api(type), is_torch_tensor(type),
                 type->tp_as_buffer && type->tp_as_buffer->bf_getbuffer};
  Py_INCREF(reinterpret_cast<PyObject*>(type));
  cache->push_back(entry);
  return cache->back();
}

PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

bool is_true(PyObject* result) {
  const bool value = result == Py_True;
  if (result == nullptr) PyErr_Clear();
  Py_XDECREF(result);
  return value;
}

Types type_of(dlpack::DataType type) {
  if (type.lanes != 1) return 0;
  switch (type.code << 8 | type.bits) {
    case dlpack::kFloat << 8 | 32:
      return kFloat32;
    case dlpack::kFloat << 8 | 16:
      return kFloat16;
    case dlpack::kFloat << 8 | 64:
      return kFloat64;
    case dlpack::kBfloat << 8 | 16:
      return kBFloat16;
    case dlpack::kInt << 8 | 32:
      return kInt32;
    case dlpack::kInt << 8 | 64:
      return kInt64;
    case dlpack::kInt << 8 | 8:
      return kInt8;
    case dlpack::kUInt << 8 | 8:
      return kUInt8;
    case dlpack::kUInt << 8 | 16:
      return kUInt16;
    case dlpack::kUInt << 8 | 32:
      return kUInt32;
    case dlpack::kBool << 8 | 8:
      return kBool;
    default:
      return 0;
  }
}

// struct-module format of a buffer; 0 where it is unknown or not in this machine's byte order.
Types type_of(const char* format, Py_ssize_t itemsize) {
  if (format == nullptr) return kUInt8;
  if (*format == '<' || *format == '=' || *format == '@') ++format;
  if (format[0] == '\0' || format[1] != '\0') return 0;
  switch (*format) {
    case 'f':
      return kFloat32;
    case 'd':
      return kFloat64;
    case 'e':
      return kFloat16;
    case '?':
      return kBool;
    case 'b':
      return kInt8;
    case 'B':
      return kUInt8;
    case 'H':
      return kUInt16;
    case 'i':
    case 'l':
    case 'q':
      return itemsize == 4 ? kInt32 : itemsize == 8 ? kInt64 : 0;
    case 'I':
    case 'L':
      return itemsize == 4 ? kUInt32 : 0;
    default:
      return 0;
  }
}

int64_t item_size(Types type) {
  if (type & (kInt64 | kFloat64)) return 8;
  if (type & (kFloat32 | kInt32 | kUInt32)) return 4;
  return type & (kInt8 | kUInt8 | kBool) ? 1 : 2;
}

int count_dims(const char* letters) {
  int dims = letters[1] != ']';
  for (const char* c = letters; *c != '\0'; ++c) dims += *c == ',';
  return dims;
}

std::string join(const int64_t* values, int count) {
  std::string text = "[";
  for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

const char* device_name(int32_t type) {
  switch (type) {
    case dlpack::kCpu:
      return "cpu";
    case dlpack::kCuda:
      return "cuda";
    case dlpack::kCudaHost:
      return "pinned cpu memory";
    case dlpack::kCudaManaged:
      return "cuda (managed)";
    default:
      return "another device";
  }
}

}  // namespace

std::string type_name(Types types) {
  static constexpr struct {
    Types type;
    const char* name;
  } kNames[] = {{kFloat32, "float32"}, {kBFloat16, "bfloat16"}, {kFloat16, "float16"}, {kInt32, "int32"},
                {kInt64, "int64"},     {kUInt8, "uint8"},       {kBool, "bool"},       {kFloat64, "float64"},
                {kUInt16, "uint16"},   {kUInt32, "uint32"},     {kInt8, "int8"}};
  std::string text;
  for (const auto& entry : kNames) {
    if (types & entry.type) text += (text.empty() ? "" : " or ") + std::string(entry.name);
  }
  return text.empty() ? "an unsupported type" : text;
}

TensorArg::TensorArg(const char* name, py::handle object, Types allowed, const char* shape, Flags flags)
    : name_(name), letters_(shape), object_(object) {
  if (object.is_none() && (flags & kOptional)) return;
  import(object);
  try {
    check(allowed, flags);
  } catch (...) {
    if (has_buffer_) PyBuffer_Release(&buffer_);  // the destructor will not run
    throw;
  }
}

TensorArg::~TensorArg() {
  if (has_buffer_) PyBuffer_Release(&buffer_);
}

void TensorArg::import(py::handle object) {
  static PyObject* const requires_grad = interned("requires_grad");
  static PyObject* const is_neg = interned("is_neg");
  const Importer& importer = importer_of(Py_TYPE(object.ptr()));
  if (importer.is_torch && is_true(PyObject_GetAttr(object.ptr(), requires_grad))) {
    fail_value("was a tensor that requires grad, must not be: detach() it");
  }
  if (importer.api != nullptr) {
    dlpack::Tensor tensor;
    if (importer.api->export_view(object.ptr(), &tensor) != 0) fail_import(object);
    api_ = importer.api;
    read(tensor);
  } else if (importer.is_torch) {
    static const py::handle to_dlpack = py::object(py::module_::import("torch._C").attr("_to_dlpack")).release();
    PyObject* capsule = PyObject_CallOneArg(to_dlpack.ptr(), object.ptr());
    if (capsule == nullptr) fail_import(object);
    import_capsule(object, py::reinterpret_steal<py::object>(capsule));
  } else if (importer.has_buffer) {
    import_buffer(object);
  } else if (py::hasattr(object, "__dlpack__")) {
    import_capsule(object, py::object());
  } else {
    fail_type("was " + std::string(Py_TYPE(object.ptr())->tp_name) + ", must be a torch tensor or a NumPy array");
  }
  given_ = true;
  if (importer.is_torch && (type_ & (kFloating | kFloat64)) &&
      is_true(PyObject_CallMethodNoArgs(object.ptr(), is_neg))) {
    fail_value("had its negative bit set, must be resolved: call resolve_neg()");
  }
}

void TensorArg::read(const dlpack::Tensor& tensor) {
  if (tensor.ndim > kMaxDims) fail_value("had " + std::to_string(tensor.ndim) + " dimensions, must be " + letters_);
  data_ = tensor.data == nullptr ? nullptr : static_cast<char*>(tensor.data) + tensor.byte_offset;
  device_ = tensor.device;
  ndim_ = tensor.ndim;
  type_ = type_of(tensor.dtype);
  int64_t dense = 1;
  for (int i = ndim_ - 1; i >= 0; --i) {
    shape_[i] = tensor.shape[i];
    strides_[i] = tensor.strides == nullptr ? dense : tensor.strides[i];
    dense *= shape_[i];
  }
}

void TensorArg::import_buffer(py::handle object) {
  if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_RECORDS_RO) != 0) fail_import(object);
  has_buffer_ = true;
  data_ = buffer_.buf;
  read_only_ = buffer_.readonly;
  type_ = type_of(buffer_.format, buffer_.itemsize);
  device_ = {dlpack::kCpu, 0};
  const bool too_deep = buffer_.ndim > kMaxDims;
  ndim_ = too_deep ? 0 : buffer_.ndim;
  bool whole_strides = true;
  for (int i = 0; i < ndim_; ++i) {
    shape_[i] = buffer_.shape[i];
    strides_[i] = buffer_.strides[i] / buffer_.itemsize;
    whole_strides &= shape_[i] <= 1 || buffer_.strides[i] % buffer_.itemsize == 0;
  }
  const std::string format = type_ == 0 ? buffer_.format : "";
  if (type_ != 0 && whole_strides && !too_deep) return;
  has_buffer_ = false;
  PyBuffer_Release(&buffer_);
  if (too_deep) fail_value(std::string("had too many dimensions, must be ") + letters_);
  if (type_ == 0) fail_type("had the element format '" + format + "', which is not supported");
  fail_value("had strides that are no multiple of its element size, must be contiguous: call .copy()");
}

void TensorArg::import_capsule(py::handle object, py::object capsule) {
  try {
    if (!capsule) {
      const bool on_cpu = object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>() == dlpack::kCpu;
      py::dict options;
      if (!on_cpu) options["stream"] = -1;  // no synchronisation: the op launches on the producer's own stream
      options["max_version"] = py::make_tuple(1, 0);
      try {
        capsule = object.attr("__dlpack__")(**options);
      } catch (py::error_already_set& error) {
        if (!error.matches(PyExc_TypeError)) throw;
        options.attr("pop")("max_version");
        capsule = object.attr("__dlpack__")(**options);
      }
    }
  } catch (py::error_already_set& error) {
    error.restore();
    fail_import(object);
  }
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* managed = static_cast<dlpack::ManagedVersioned*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    read_only_ = managed->flags & dlpack::kReadOnly;
    read(managed->tensor);
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    read(static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"))->tensor);
  } else {
    fail_type("gave a DLPack capsule of an unknown kind");
  }
  keep_alive_ = std::move(capsule);  // never renamed to "used_...": its own destructor frees it
}

void TensorArg::check(Types allowed, Flags flags) const {
  if ((type_ & allowed) == 0) fail_type("had dtype " + type_name(type_) + ", must be " + type_name(allowed));
  if (ndim_ != count_dims(letters_)) fail_value("had shape " + join(shape_, ndim_) + ", must be " + letters_);
  const bool on_host = device_.type == dlpack::kCpu || device_.type == dlpack::kCudaHost;
  if (!on_host && !(on_cuda() && (flags & kAnyDevice))) {
    fail_value(std::string("was on ") + device_name(device_.type) + ", must be on cpu" +
               (flags & kAnyDevice ? " or cuda" : ""));
  }
  if (read_only_ && (flags & kWritable)) fail_value("was read-only, must be writable");
  if (data_ == nullptr && numel() != 0) fail_value("had no storage (a fake or meta tensor), must have data");
  if (reinterpret_cast<uintptr_t>(data_) % item_size(type_) != 0) {
    fail_value("was misaligned, must be aligned to its element size: call .clone()");
  }
  check_layout(flags);
}

void TensorArg::check_layout(Flags flags) const {
  if (numel() == 0) return;
  const int64_t smallest = flags & kWritable ? 1 : 0;  // an output must not be a broadcast view
  int64_t dense = 1;
  for (int i = ndim_ - 1; i >= 0; --i) {
    const bool free = (flags & kStrided) && i != ndim_ - 1 && strides_[i] >= smallest;
    if (shape_[i] != 1 && strides_[i] != dense && !free) {
      fail_value("had strides " + join(strides_, ndim_) + " for shape " + join(shape_, ndim_) + ", must be contiguous" +
                 (flags & kStrided ? " in its last dimension" : "") + ": call .contiguous()");
    }
    dense *= shape_[i];
  }
}

int64_t TensorArg::numel() const {
  int64_t count = 1;
  for (int i = 0; i < ndim_; ++i) count *= shape_[i];
  return given_ ? count : 0;
}

DType TensorArg::dtype() const {
  if (type_ == kInt8) return DType::kInt8;
  return type_ == kFloat32 ? DType::kFloat32 : type_ == kBFloat16 ? DType::kBFloat16 : DType::kFloat16;
}

void* TensorArg::current_stream() const {
  void* stream = nullptr;
  if (api_ != nullptr) {
    if (api_->current_stream(device_.type, device_.id, &stream) != 0) throw py::error_already_set();
    return stream;
  }
  const py::object modules = py::module_::import("sys").attr("modules");
  if (is_torch_tensor(Py_TYPE(object_.ptr()))) {
    const py::object current = modules["torch"].attr("cuda").attr("current_stream")(device_.id);
    return reinterpret_cast<void*>(current.attr("cuda_stream").cast<uintptr_t>());
  }
  if (!modules.contains("cupy")) return nullptr;
  const py::object current = modules["cupy"].attr("cuda").attr("get_current_stream")(device_.id);
  return reinterpret_cast<void*>(current.attr("ptr").cast<uintptr_t>());
}

void TensorArg::sizes(std::initializer_list<int64_t> expected) const {
  if (!given_) return;
  const int64_t* shape = shape_;
  for (const int64_t size : expected) {
    if (*shape++ != size) {
      fail_value("had shape " + join(shape_, ndim_) + ", must be " + letters_ + " = " +
                 join(expected.begin(), static_cast<int>(expected.size())));
    }
  }
}

void TensorArg::same_device(const TensorArg& other) const {
  if (!given_ || (on_cuda() == other.on_cuda() && (!on_cuda() || device_.id == other.device_.id))) return;
  fail_value(std::string("was on ") + device_name(device_.type) + ":" + std::to_string(device_.id) + ", must be on " +
             device_name(other.device_.type) + ":" + std::to_string(other.device_.id) + " like " + other.name_);
}

void TensorArg::fail_value(const std::string& message) const {
  throw py::value_error(std::string(name_) + " " + message);
}

void TensorArg::fail_element(int64_t index, const std::string& must_be) const {
  int64_t where[kMaxDims], rest = index;
  for (int i = ndim_ - 1; i >= 0; --i) {
    where[i] = rest % shape_[i];
    rest /= shape_[i];
  }
  fail_value("had " + std::to_string(data<int32_t>()[index]) + " at " + join(where, ndim_) + ", must be " + must_be);
}

void TensorArg::fail_type(const std::string& message) const {
  throw py::type_error(std::string(name_) + " " + message);
}

// The producer's error, in one line: meta and sparse tensors come with long traces.
void TensorArg::fail_import(py::handle object) const {
  py::error_already_set error;
  fail_type(std::string("(") + Py_TYPE(object.ptr())->tp_name +
            ") could not be read as a dense tensor: " + first_line(py::str(error.value()).cast<std::string>()));
}

}  // namespace specbranch
