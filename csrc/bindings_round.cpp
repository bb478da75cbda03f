// Bindings of what happens between two rounds on the device. The pattern is explained in common/tensor_arg.h.
#include <string>

#include "bindings.h"
#include "common/backend.h"
#include "common/tensor_arg.h"
#include "ops.h"

namespace py = pybind11;

namespace specbranch {
namespace {

void check_values(const AdvanceParams& p, const TensorArg& length, const TensorArg& chain_length,
                  const TensorArg& num_accepted, const TensorArg& survivor) {
  for (int64_t b = 0; b < p.B; ++b) {
    if (p.length[b] < 2 || p.length[b] > p.T) length.fail_element(b, "in 2.." + std::to_string(p.T));
    if (p.chain_length[b] < 0 || p.chain_length[b] > p.G) {
      chain_length.fail_element(b, "in 0.." + std::to_string(p.G));
    }
    if (p.num_accepted[b] < -1 || p.num_accepted[b] > p.chain_length[b]) {
      num_accepted.fail_element(b, "in -1.." + std::to_string(p.chain_length[b]) + ", the chain's length");
    }
    if (p.survivor[b] < -1 || p.survivor[b] >= p.K) survivor.fail_element(b, "in -1.." + std::to_string(p.K - 1));
  }
}

void advance(const py::tuple& verdict, const py::tuple& drafted, float epsilon, const py::tuple& state,
             const py::tuple& commit, const py::tuple& inputs, py::handle round_, py::handle report_,
             py::handle backend_, py::handle stream_) {
  constexpr Flags out = kWritable;
  TensorArg num_accepted("num_accepted", verdict[0], kInt32, "[B]", kAnyDevice);
  TensorArg next_token("next_token", verdict[1], kInt32, "[B]", kAnyDevice);
  TensorArg survivor("survivor", verdict[2], kInt32, "[B]", kAnyDevice);
  TensorArg num_branches("num_branches", drafted[0], kInt32, "[B]", kOptional | kAnyDevice);
  TensorArg tokens_drafted("drafted", drafted[1], kInt32, "[B, G, K]", kAnyDevice);
  TensorArg confidence("confidence", drafted[2], kFloat32, "[B, G, K]", kAnyDevice);
  TensorArg keep("keep", drafted[3], kInt32, "[B]", kOptional | kAnyDevice);
  TensorArg tokens("tokens", state[0], kInt64, "[B, T]", out | kAnyDevice);
  TensorArg length("length", state[1], kInt32, "[B]", out | kAnyDevice);
  TensorArg chain("chain", state[2], kInt32, "[B, G]", out | kAnyDevice);
  TensorArg chain_length("chain_length", state[3], kInt32, "[B]", out | kAnyDevice);
  TensorArg slots("commit_slots", commit[0], kInt32, "[B, G]", out | kAnyDevice);
  TensorArg start("commit_start", commit[1], kInt32, "[B]", out | kAnyDevice);
  TensorArg count("commit_length", commit[2], kInt32, "[B]", out | kAnyDevice);
  TensorArg target_inputs("target_inputs", inputs[0], kInt64, "[B, G + 1]", out | kAnyDevice);
  TensorArg draft_inputs("draft_inputs", inputs[1], kInt64, "[B, 2]", out | kAnyDevice);
  TensorArg target_prefix("target_prefix", inputs[2], kInt32, "[B]", out | kAnyDevice);
  TensorArg branch_point("branch_point", inputs[3], kInt32, "[B]", out | kAnyDevice);
  TensorArg round("round", round_, kInt64, "[1]", out | kAnyDevice);
  TensorArg report("report", report_, kInt32, "[R, B, 6 + G]", out | kAnyDevice);
  const int64_t B = chain.size(0), G = chain.size(1), K = tokens_drafted.size(2), T = tokens.size(1);
  for (const TensorArg* arg : {&num_accepted, &next_token, &survivor, &num_branches, &keep, &length, &chain_length,
                               &start, &count, &target_prefix, &branch_point}) {
    arg->sizes({B});
  }
  tokens_drafted.sizes({B, G, K});
  confidence.sizes({B, G, K});
  tokens.sizes({B, T});
  slots.sizes({B, G});
  target_inputs.sizes({B, G + 1});
  draft_inputs.sizes({B, 2});
  round.sizes({1});
  report.sizes({report.size(0), B, G + kReportHead});
  if (report.size(0) < 1) report.fail_value("had no rows, must have at least one");
  const Backend backend(backend_, stream_, {&chain,          &num_accepted,  &next_token,   &survivor, &num_branches,
                                            &tokens_drafted, &confidence,    &keep,         &tokens,   &length,
                                            &chain_length,   &slots,         &start,        &count,    &target_inputs,
                                            &draft_inputs,   &target_prefix, &branch_point, &round,    &report});
  AdvanceParams p{};
  p.B = B, p.G = G, p.K = K, p.T = T, p.R = report.size(0), p.epsilon = epsilon;
  p.num_accepted = num_accepted.data<int32_t>(), p.next_token = next_token.data<int32_t>();
  p.survivor = survivor.data<int32_t>(), p.num_branches = num_branches.data<int32_t>();
  p.drafted = tokens_drafted.data<int32_t>(), p.confidence = confidence.data<float>(), p.keep = keep.data<int32_t>();
  p.tokens = tokens.data<int64_t>(), p.length = length.data<int32_t>(), p.chain = chain.data<int32_t>();
  p.chain_length = chain_length.data<int32_t>(), p.commit_slots = slots.data<int32_t>();
  p.commit_start = start.data<int32_t>(), p.commit_length = count.data<int32_t>();
  p.target_inputs = target_inputs.data<int64_t>(), p.draft_inputs = draft_inputs.data<int64_t>();
  p.target_prefix = target_prefix.data<int32_t>(), p.branch_point = branch_point.data<int32_t>();
  p.round = round.data<int64_t>(), p.report = report.data<int32_t>();
  if (backend.on_cpu()) check_values(p, length, chain_length, num_accepted, survivor);
  backend.run(1.0, p, SB_BACKENDS(advance));
}

void stopwatch(py::handle times_, bool start, py::handle backend_, py::handle stream_) {
  TensorArg times("times", times_, kInt64, "[2]", kWritable | kAnyDevice);
  times.sizes({2});
  const Backend backend(backend_, stream_, {&times});
  const StopwatchParams p{times.data<int64_t>(), start};
  backend.run(0.1, p, SB_BACKENDS(stopwatch));
}

}  // namespace

void register_round_ops(py::module_& m) {
  m.def("advance", &advance);
  m.def("stopwatch", &stopwatch);
}

}  // namespace specbranch
