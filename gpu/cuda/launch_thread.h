// A thread that launches what a step needs. Where the driver has no room for more launches it lets the caller wait for
// the device, which in a step may wait for the host, so the host does not launch itself.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace thermocline::cuda {

class LaunchThread {
 public:
  explicit LaunchThread(std::function<void()> launch) : launch_(std::move(launch)), thread_([this] { Serve(); }) {}
  ~LaunchThread() {
    {
      const std::lock_guard lock(mutex_);
      leaving_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  LaunchThread(const LaunchThread&) = delete;

  // Not before the last launch() has returned.
  void Start() {
    {
      const std::lock_guard lock(mutex_);
      busy_ = true;
    }
    changed_.notify_all();
  }
  // Until launch() has returned.
  void Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !busy_; });
  }
  bool busy() const { return busy_; }

 private:
  void Serve() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return busy_ || leaving_; });
      if (!busy_) return;
      lock.unlock();
      launch_();
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }

  const std::function<void()> launch_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> busy_ = false;
  bool leaving_ = false;
  std::thread thread_;  // begins when all above is there
};

}  // namespace thermocline::cuda
