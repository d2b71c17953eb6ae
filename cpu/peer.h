// Whoever computes the other half of a split program (a device), as the CPU sees it.
#pragma once

#include "cpu/sparse_ffn.h"

namespace thermocline {

class Peer {
 public:
  virtual ~Peer() = default;
  // The memory in which rows pass through the channel of a kSend or kReceive.
  virtual SlotRows Rows(int channel) = 0;
  // All rows of a kSend stand there.
  virtual void Raise(int channel) = 0;
  // Waits for the rows of a kReceive. False: they will not come, and the step is void. By several members at once.
  virtual bool Await(int channel) = 0;
  // The memory in which the panels of a kSendPanels pass, 64-byte aligned, once what stood there before was taken.
  // Null: it will not be, and the step is void. By several members at once.
  virtual uint8_t* Panels(int piece) = 0;
  // All panels of the piece stand there.
  virtual void RaisePanels(int piece) = 0;
};

}  // namespace thermocline
