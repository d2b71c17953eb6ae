// From how many rows on a step of a prompt is streamed.
#pragma once

namespace thermocline {

// Seconds of a step of n_rows prompt rows with the CPU, and streamed, and of one of twice as many, streamed. What the
// CPU takes grows with the rows; streamed it is how long weights are on their way, and what grows with the rows on the
// device. The rows where both are even, rounded up to a power of 2, so that other rows are rarely streamed today than
// yesterday; INT_MAX where streaming will not catch up.
int RowsToStream(int n_rows, double with_cpu, double streamed, double streamed_twice);

}  // namespace thermocline
