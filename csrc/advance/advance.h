// What one round decided, written into the state that the next round starts from. Host and device alike, one batch row.
//
//   X += accepted chain tokens, next token
//   next chain = what is kept of the surviving branch; empty where none survived
//   kept:  all of it (keep 2), nothing (keep 0), or up to the first confidence below epsilon (keep 1, the default)
//
// The draft's cache is left one token behind X + chain, whatever happened: its next stage begins with that token. So of
// a surviving branch its first `kept` nodes move behind the prefix (the candidate, and all kept tokens but the last).
// Confidence is the largest probability of the row that a token was drawn from, known before the draw: see
// docs/losslessness.md.
#pragma once

#include "common/portable.h"
#include "ops.h"

namespace specbranch {

// How many of the S tokens drafted behind branch `idx` are kept.
SB_HD int32_t num_kept(const AdvanceParams& p, int64_t b, int32_t idx) {
  const int32_t keep = p.keep == nullptr ? 1 : p.keep[b];
  int32_t kept = 0;
  for (; keep > 0 && kept < p.G; ++kept) {
    const int64_t at = (b * p.G + kept) * p.K + idx;
    if (p.drafted[at] < 0 || (keep == 1 && !(p.confidence[at] >= p.epsilon))) break;
  }
  return kept;
}

SB_HD void report_row(const AdvanceParams& p, int64_t b, int32_t verified, int32_t kept) {
  int32_t* report = p.report + (static_cast<int64_t>(*p.round) % p.R * p.B + b) * (p.G + kReportHead);
  report[0] = p.num_accepted[b], report[1] = verified, report[2] = p.survivor[b], report[3] = p.next_token[b];
  report[4] = kept, report[5] = p.num_branches == nullptr ? 0 : p.num_branches[b];
  for (int64_t i = 0; i < p.G; ++i) report[kReportHead + i] = i < verified ? p.chain[b * p.G + i] : -1;
}

SB_HD void advance_row(const AdvanceParams& p, int64_t b) {
  const int32_t verified = p.chain_length[b], accepted = p.num_accepted[b], survivor = p.survivor[b];
  int32_t* chain = p.chain + b * p.G;
  const bool bad = accepted < 0 || p.length[b] + accepted + 1 > p.T;  // a NaN row, or no room: the state stays
  const int32_t kept = bad || survivor < 0 ? 0 : num_kept(p, b, survivor);
  report_row(p, b, verified, kept);
  p.commit_length[b] = kept;
  if (bad) return;
  int64_t* tokens = p.tokens + b * p.T;
  int32_t length = p.length[b];
  p.commit_start[b] = length + verified;  // where the candidate belongs
  for (int32_t i = 0; i < accepted; ++i) tokens[length++] = chain[i];
  tokens[length++] = p.next_token[b];
  for (int32_t i = 0; i < p.G; ++i) {
    const int64_t node = static_cast<int64_t>(i) * p.K + survivor;
    chain[i] = i < kept ? p.drafted[b * p.G * p.K + node] : 0;
    p.commit_slots[b * p.G + i] = i < kept ? static_cast<int32_t>(p.commit_start[b] + node) : -1;
  }
  p.length[b] = length;
  p.chain_length[b] = kept;
}

// The inputs of the next round's forwards: the target reads X's last token and the chain (0 behind its end), the draft
// the two tokens before its branch point (its cache lacks the last).
SB_HD void next_inputs(const AdvanceParams& p, int64_t b) {
  const int32_t length = p.length[b], drafted = p.chain_length[b];
  const int64_t* tokens = p.tokens + b * p.T;
  int64_t* target = p.target_inputs + b * (p.G + 1);
  target[0] = tokens[length - 1];
  for (int64_t i = 0; i < p.G; ++i) target[i + 1] = i < drafted ? p.chain[b * p.G + i] : 0;
  p.draft_inputs[2 * b] = drafted > 1 ? target[drafted - 1] : tokens[length + drafted - 2];
  p.draft_inputs[2 * b + 1] = target[drafted];
  p.target_prefix[b] = length - 1;
  p.branch_point[b] = length + drafted;
}

}  // namespace specbranch
