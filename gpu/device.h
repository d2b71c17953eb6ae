// What a device is to the rest of the program: memory within a budget, and a list of ops that it executes beside the
// CPU. This is the whole contract; nothing in it belongs to one make of devices.
//
// At load the host describes the device's part of the forward pass once, in SetPrograms: a list of ops, or several, of
// which every step names one in Begin. The ops run in order. The device may fuse neighbours and may record the whole,
// say as a graph for each number of rows: what differs from step to step is in DeviceStep, never in the ops, and all
// addresses are fixed. Host and device meet at flags, which are down when a step begins and go up once in it:
//
//   host                                device
//   Begin(step)  ------------------->   kNorm, kLinear ...
//   Await(0), reads the rows   <-----   kSend, flag 0: rows to page-locked memory, then the flag goes up
//   writes rows, Raise(1)  --------->   kReceive, flag 1: waits for the flag, then rows from page-locked memory
//   Finish()  <----------------------   the end of the list
//
// Weights that the device has no room for come while it computes, through a buffer that several ops share:
//
//   writes panels, Raise(2)  ------->   kReceivePanels, flag 2: waits for the flag, then the buffer = the panels
//   Await(3), writes others  <-------   taken 3: the page-locked memory may change
//                                       kLinear by the buffer
//
// A kReceivePanels may run ahead of the ops in front of it, as soon as none of those that read its buffer is left.
// Nothing but SetPrograms and the allocating functions takes memory; nothing but Await and Finish waits for the device.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "gpu/device_buffer.h"
#include "models/dtype.h"
#include "models/error.h"
#include "models/kv_layout.h"
#include "models/model.h"
#include "models/packed_format.h"

namespace thermocline {

// A device does not do what it was asked to. It stays usable after DeviceOutOfMemory; after any other error every call
// but destruction fails with DeviceLost, or returns false.
class DeviceError : public Error {
 public:
  using Error::Error;
};
class DeviceOutOfMemory : public DeviceError {
 public:
  using DeviceError::DeviceError;
};
class DeviceLost : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

// Rows of floats in the device's memory.
struct DeviceRows {
  DeviceAddress data = 0;
  int64_t stride = 0;  // floats from row to row, a multiple of 16
  int width = 0;       // floats of a row that count
};

// Rows of floats in page-locked memory (kLogits: in any memory).
struct HostRows {
  float* data = nullptr;
  int64_t stride = 0;
};

// A matrix (N, K) that UploadPanels brought, at Device::MatrixBytes bytes in a form that is the device's business.
struct DeviceMatrix {
  DType type{};
  int64_t n = 0, k = 0;
  DeviceAddress data = 0;
};

struct DeviceProjection {
  DeviceMatrix w;
  DeviceAddress bias = 0;  // (N) floats, or none
  DeviceRows out;          // N of a row
};

enum class DeviceOpKind : uint8_t {
  kRopeTable,  // out = cos, sin of position * vector[i], side by side; vector: (out.width / 2) doubles, rad per
               // position
  kNorm,       // out (+)= norm(in) * vector, and + bias for a layer norm. Over wanted rows it gathers them from `in`
  kHeadNorm,   // in place on `out`: rms_norm of each head * vector
  kRope,       // in place on `out`: rotates each head's first in.width dims; in: the rows of kRopeTable
  kLinear,     // projections[i].out (+)= w[i] in + bias[i]; in's first `lead` columns and those from in.width on to K
               // count as zero
  kGatedAct,   // out = act(in) * in2; out may be in
  kAct,        // out = act(in); out may be in
  kCountFirings,  // counts[i] += 1 (modulo 2^32) for each row of the decode class with |act(in[i])| not <= vector[0]
  kStoreKv,    // keys `in`, values `in2` of the rows whose position is one of [first_token, end_token) go to KV pages
  kAttention,  // out = attention of `in` over the pages' tokens in [first_token, end_token)
  kAttentionState,  // the same, left unfinished: out = of each head its maximum, of each head its sum, then of each
                    // head head_dim of accumulator (AttentionStateWidth); -inf, 0, 0 where a row sees none of the
                    // tokens
  kAttentionMerge,  // out = attention over the tokens of two states `in`, which may change, and `in2`
  kAdd,             // out += in
  kReceive,         // waits for `flag`, then out = host rows
  kSend,            // host rows = in, then `flag` goes up
  kReceivePanels,  // waits for `flag`, then projections[0].w = `panels`, as UploadPanels has them; then `taken` goes up
  kLogits,  // host rows = projections[0].w in + bias over wanted rows, then `flag` goes up. The device multiplies as
            // many at once as it has memory for
};

// One op over all rows of a step, or over the wanted ones, which stand compactly. Fields that a kind does not name in
// its comment are unused by it.
struct DeviceOp {
  DeviceOpKind kind{};
  int16_t layer = -1;
  bool wanted_rows = false;
  bool accumulate = false;  // kNorm, kLinear: add to `out` instead of overwriting it
  // kLinear: prompt rows of `in` stand in 16 bits where a group's squared scale is more than so many times the row's
  // mean, else in 8; negative: all in 16 (HACKING.md "Numerics").
  float large_group = -1;
  DeviceRows in{}, in2{}, out{};
  DeviceAddress vector = 0, bias = 0;
  float eps = 0;  // kNorm, kHeadNorm
  std::array<DeviceProjection, 3> projections{};
  int n_projections = 0;
  int lead = 0;                                 // kLinear
  const uint8_t* panels = nullptr;              // kReceivePanels: in page-locked memory
  Activation activation{};                      // kAct, kGatedAct, kCountFirings
  DeviceAddress counts = 0;                     // kCountFirings: (in.width) of 32 bits
  RopeKind rope{};                              // kRope
  int head_dim = 0, n_head = 0, n_head_kv = 0;  // kHeadNorm, kRope: head_dim; kAttention...: all
  int window = 0;                               // kAttention...: tokens seen, itself included; 0: all
  float scale = 1;                              // kAttention...: multiplies q.k
  KvTypes kv_types{};                           // kStoreKv, kAttention...
  int kv_kind = 0;                              // which block table
  int64_t kv_offset_bytes = 0;                  // of the layer within its page; a head takes KvHeadBytes
  int first_token = 0, end_token = INT32_MAX;   // multiples of kPageTokens
  int flag = -1, taken = -1;
  HostRows host{};
};

struct DeviceLimits {
  int max_rows = 0, max_spans = 0;  // of a step
  int max_pages = 0;                // of a span's block table
  int n_flags = 0;
  std::array<int, 2> decode_rows = {1, 8};  // numbers of generated rows worth preparing for, first and last
};

// Consecutive rows of one sequence.
struct DeviceSpan {
  int first_row, n_rows;
  int first_position;
  const DeviceAddress* pages[kLayerKinds];  // by position / kPageTokens; 0 where the device holds none
};

// What is true of one step alone. The device copies it before Begin returns.
struct DeviceStep {
  std::span<const int32_t> positions;  // per row
  std::span<const uint8_t> prompt;     // per row: of the prompt class (0: decode class)
  std::span<const int32_t> wanted;     // rows whose logits are wanted, ascending
  std::span<const DeviceSpan> spans;   // cover all rows in order
  int program = 0;                     // of those set
};

// All functions but Raise and Await are called by one thread at a time.
class Device {
 public:
  virtual ~Device() = default;

  virtual std::string name() const = 0;                    // "NVIDIA GeForce RTX 4090"
  virtual int64_t free_bytes() const = 0;                  // that Allocate may still give, within the budget
  virtual bool Supports(DType type) const = 0;             // as the type of a matrix
  virtual bool SupportsKv(KvTypes) const { return true; }  // whether pages may hold such keys and values
  virtual bool StreamsUnasked() const { return true; }     // whether prompts stream weights to it by default
  virtual int64_t MatrixBytes(DType type, int64_t n, int64_t k) const { return PackedBytes(type, n, k); }

  // Zeroed, aligned to 256 bytes. Throws DeviceOutOfMemory naming `what`, in the budget or on the device.
  DeviceBuffer Allocate(int64_t bytes, const char* what);
  // Zeroed, aligned to 64 bytes; no part of the budget. Throws DeviceOutOfMemory.
  StagingBuffer AllocateStaging(int64_t bytes, const char* what);

  // Return when `from` may change and `to` is valid.
  virtual void Upload(DeviceAddress to, std::span<const uint8_t> from) = 0;
  virtual void Download(std::span<uint8_t> to, DeviceAddress from) = 0;
  // Panels [begin, end) of the matrix as models/packed_format.h has them; of a float type rows [16 begin, 16 end), at
  // most n, PackedStride apart. `packed` is where panel `begin` starts.
  virtual void UploadPanels(const DeviceMatrix& to, int64_t begin, int64_t end, const uint8_t* packed) = 0;

  // From now on Begin runs one of these lists of ops; once per device. May take memory, of the budget too. Numbers of
  // rows are prepared for in the first alone.
  virtual void SetPrograms(std::vector<std::vector<DeviceOp>> programs, const DeviceLimits& limits) = 0;
  // Starts a program over the rows of a step. Not before the last one finished.
  virtual void Begin(const DeviceStep& step) = 0;
  // What the host wrote before is seen by the kReceive or kReceivePanels of the flag.
  virtual void Raise(int flag) noexcept = 0;
  // Waits for a kSend or kLogits, whose rows may be read then, or a `taken`. False when the device is lost, or after
  // Abandon.
  [[nodiscard]] virtual bool Await(int flag) noexcept = 0;
  // Waits for the end of the program. False when the device is lost.
  [[nodiscard]] virtual bool Finish() noexcept = 0;
  // The host gave up: all flags go up, and what the rest of the program computes is void. Finish follows.
  virtual void Abandon() noexcept = 0;
  // Why the device is lost; empty: it is not.
  virtual std::string LostBecause() const = 0;

 protected:
  friend class DeviceBuffer;
  friend class StagingBuffer;
  virtual DeviceAddress AllocateBytes(int64_t bytes, const char* what) = 0;
  virtual void FreeBytes(DeviceAddress address, int64_t bytes) noexcept = 0;
  virtual void* AllocateStagingBytes(int64_t bytes, const char* what) = 0;
  virtual void FreeStagingBytes(void* data, int64_t bytes) noexcept = 0;
};

inline DeviceBuffer::~DeviceBuffer() {
  if (address_) device_->FreeBytes(address_, bytes_);
}
inline StagingBuffer::~StagingBuffer() {
  if (data_) device_->FreeStagingBytes(data_, bytes_);
}
inline DeviceBuffer Device::Allocate(int64_t bytes, const char* what) {
  return bytes > 0 ? DeviceBuffer(*this, AllocateBytes(bytes, what), bytes) : DeviceBuffer();
}
inline StagingBuffer Device::AllocateStaging(int64_t bytes, const char* what) {
  return bytes > 0 ? StagingBuffer(*this, AllocateStagingBytes(bytes, what), bytes) : StagingBuffer();
}

}  // namespace thermocline
