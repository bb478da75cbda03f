// What each bindings_<group>.cpp offers to bindings.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace specbranch {

void register_cache_ops(pybind11::module_& m);     // tree_mask, tree_attention, kv_write, kv_commit
void register_decoder(pybind11::module_& m);       // Decoder
void register_layer_ops(pybind11::module_& m);     // rope_kv_write, add_rms_norm, silu_mul
void register_round_ops(pybind11::module_& m);     // advance
void register_sampling_ops(pybind11::module_& m);  // logit_cutoff, sample, branch_topk, verify, verify_tree

}  // namespace specbranch
