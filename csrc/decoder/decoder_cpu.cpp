// All layers of a Llama decoder in one call: the ops of the other folders, one after the other, on raw pointers; and
// with them, the embedding before and the head behind.
//
//   for each layer: x += attention(norm(x)); x += mlp(norm(x));  out = norm(x);  logits = head(out)
//
// Layout: residual [N, d] in and out, the tokens of B sequences one after the other; each has a cache of its own,
//         [L, 2, 1, Hkv, S, D] contiguous; hidden [N, K, d], the last K layers' outputs.
// Work:   everything but attention runs once over all rows, so that B sequences read the weights once; rotation and
//         attention run sequence by sequence. No op's row depends on the others: a sequence's bits are those it has
//         alone.
// Why:    not for its arithmetic, which is that of the ops, bit for bit, but because it needs no Python between them:
// two
//         lanes that take turns with the interpreter lock dozens of times a forward do not run at the same time.
// Bound:  the weights' bytes for few tokens.
#include <cstring>
#include <vector>

#include "common/element.h"
#include "ops.h"

namespace specbranch::cpu {
namespace {

// Work space of one thread, grown once.
struct Space {
  std::vector<char> normed, qkv, query, seen, delta, gate_up, inner, residual, out, last;

  static void* of(std::vector<char>& buffer, int64_t bytes) {
    if (static_cast<int64_t>(buffer.size()) < bytes) buffer.resize(bytes);
    return buffer.data();
  }
};

thread_local Space space;

class Pass {
 public:
  Pass(const DecoderParams& p, Space& space)
      : p_(p),
        bytes_(element_size(p.dtype)),
        normed_(Space::of(space.normed, p.N * p.width * bytes_)),
        qkv_(Space::of(space.qkv, p.N * (p.Hq + 2 * p.Hkv) * p.D * bytes_)),
        query_(Space::of(space.query, p.N * p.Hq * p.D * bytes_)),
        seen_(Space::of(space.seen, p.N * p.Hq * p.D * bytes_)),
        delta_(Space::of(space.delta, p.N * p.width * bytes_)),
        gate_up_(Space::of(space.gate_up, p.N * 2 * p.F * bytes_)),
        inner_(Space::of(space.inner, p.N * p.F * bytes_)) {}

  void run() const {
    for (int64_t layer = 0; layer < p_.L; ++layer) {
      norm(p_.layers[layer].input_norm, layer > 0 ? delta_ : nullptr, normed_);
      if (layer > 0) keep_hidden(layer - 1);
      attend(p_.layers[layer], layer);
      norm(p_.layers[layer].mlp_norm, delta_, normed_);
      feed_forward(p_.layers[layer]);
    }
    norm(p_.final_norm, delta_, p_.out);
    keep_hidden(p_.L - 1);
  }

 private:
  void norm(const void* weight, const void* delta, void* out) const {
    add_rms_norm({p_.N, p_.width, p_.dtype, p_.eps, delta, weight, p_.residual, out});
  }

  void multiply(const DecoderLinear& w, int64_t inputs, int64_t outputs, const void* x, void* out) const {
    linear({p_.N, inputs, outputs, p_.dtype, w.dtype, x, w.weight, w.bias, out});
  }

  void attend(const DecoderLayer& w, int64_t layer) const {
    const int64_t heads = (p_.Hq + 2 * p_.Hkv) * p_.D;
    multiply(w.qkv, p_.width, heads, normed_, qkv_);
    int64_t first = 0;
    for (int64_t b = 0; b < p_.B; ++b) {
      look(w, layer, p_.sequences[b], first);
      first += p_.sequences[b].N;
    }
    multiply(w.out, p_.Hq * p_.D, p_.width, seen_, delta_);
  }

  // Attention of a sequence, whose rows begin at `first`.
  void look(const DecoderLayer& w, int64_t layer, const DecoderSequence& s, int64_t first) const {
    const int64_t heads = (p_.Hq + 2 * p_.Hkv) * p_.D, per_head = s.S * p_.D;
    char* data = static_cast<char*>(s.cache) + layer * 2 * p_.Hkv * per_head * bytes_;
    const CacheLayer cache{data, p_.dtype, p_.Hkv * per_head, p_.Hkv * per_head, per_head, p_.D};
    void *query = row(query_, first, p_.Hq * p_.D), *seen = row(seen_, first, p_.Hq * p_.D);
    rope_kv_write({1, s.N, p_.Hq, p_.Hkv, s.S, p_.D, p_.P, p_.dtype, p_.eps, row(qkv_, first, heads), w.q_norm,
                   w.k_norm, p_.cos_table, p_.sin_table, s.positions, s.slots, cache, query});
    tree_attention({1, s.N, p_.Hq, p_.Hkv, s.S, p_.D, s.W, p_.scale, p_.dtype, query, cache, s.prefix_length,
                    s.ancestor_bits, seen});
  }

  void* row(void* rows, int64_t idx, int64_t width) const { return static_cast<char*>(rows) + idx * width * bytes_; }

  void feed_forward(const DecoderLayer& w) const {
    multiply(w.gate_up, p_.width, 2 * p_.F, normed_, gate_up_);
    silu_mul({p_.N, p_.F, p_.dtype, gate_up_, inner_});
    multiply(w.down, p_.F, p_.width, inner_, delta_);
  }

  // The residual now holds the output of `layer`.
  void keep_hidden(int64_t layer) const {
    const int64_t idx = layer - (p_.L - p_.K), row = p_.width * bytes_;
    if (idx < 0) return;
    for (int64_t n = 0; n < p_.N; ++n) {
      std::memcpy(static_cast<char*>(p_.hidden) + (n * p_.K + idx) * row, static_cast<char*>(p_.residual) + n * row,
                  row);
    }
  }

  const DecoderParams& p_;
  int64_t bytes_;
  void *normed_, *qkv_, *query_, *seen_, *delta_, *gate_up_, *inner_;
};

}  // namespace

void decoder(const DecoderParams& p) {
  if (p.N == 0) return;
  Pass(p, space).run();
}

namespace {

// The rows that the head reads, one after the other: those of one sequence lie so already.
const void* gather(const ForwardParams& p, const void* rows, int64_t row_bytes, int64_t* count) {
  const DecoderParams& d = p.decoder;
  *count = d.N;
  if (p.head_rows == nullptr) return rows;
  *count = 0;
  for (int64_t b = 0; b < d.B; ++b) *count += p.head_rows[b];
  const char* end = static_cast<const char*>(rows);
  if (d.B == 1) return end + (d.N - *count) * row_bytes;
  char* out = static_cast<char*>(Space::of(space.last, *count * row_bytes));
  void* const first = out;
  for (int64_t b = 0; b < d.B; ++b) {
    const int64_t size = p.head_rows[b] * row_bytes;
    end += d.sequences[b].N * row_bytes;
    std::memcpy(out, end - size, size);
    out += size;
  }
  return first;
}

}  // namespace

void forward(const ForwardParams& p) {
  DecoderParams d = p.decoder;
  const int64_t row = d.width * element_size(d.dtype);
  d.residual = Space::of(space.residual, d.N * row), d.out = Space::of(space.out, d.N * row);
  for (int64_t i = 0; i < d.N; ++i) {
    std::memcpy(static_cast<char*>(d.residual) + i * row, static_cast<const char*>(p.embedding) + p.tokens[i] * row,
                row);
  }
  Pass(d, space).run();
  int64_t count = 0;
  const void* last = gather(p, d.out, row, &count);
  linear({count, d.width, p.V, d.dtype, p.head.dtype, last, p.head.weight, p.head.bias, p.logits});
}

}  // namespace specbranch::cpu
