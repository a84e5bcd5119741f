#include "fs/files.h"

#include <cerrno>

namespace holdfast::fs {

int errno_of(const Error& error) {
  switch (error.sys_errno) {
    // Of the agent's socket: nothing that the user of a file would understand.
    case EPIPE:
    case ECONNRESET:
    case ECONNREFUSED:
    case ETIMEDOUT:
    case EPROTO:
      return EIO;
    default:
      return error.sys_errno > 0 ? error.sys_errno : EIO;
  }
}

Files::Files(FilesMaker maker, bool read_only)
    : maker_(std::move(maker)),
      read_only_(read_only),
      why_read_only_(read_only ? "mounted read-only" : "") {}

Result<FilesStore*> Files::writing() {
  if (read_only_) return fail_errno(EROFS, "files/", "write to a read-only mount");
  if (writer_) return writer_.get();
  auto made = maker_.remote();
  writer_is_remote_ = made.has_value();
  std::string why;
  if (!made) {
    // "Nobody listens" is the usual case and says nothing; the local error does.
    made = maker_.local();
    if (!made) why = made.error().headline();
  }
  if (!made) {
    why_read_only_ = why;
    Error error = std::move(made).error();
    error.sys_errno = EROFS;
    return pass(std::move(error), "files/");
  }
  why_read_only_.clear();
  writer_ = std::move(*made);
  reader_.reset();
  changed_ = durable_ = 0;
  last_change_ = Clock::now();
  return writer_.get();
}

Result<FilesStore*> Files::newest() {
  if (writer_) return writer_.get();
  if (!reader_) {
    HOLDFAST_TRY_ASSIGN(reader_, maker_.reading());
  }
  return reader_.get();
}

Result<void> Files::look(const Act& act) {
  const std::lock_guard guard(lock_);
  HOLDFAST_TRY_ASSIGN(FilesStore * store, newest());
  auto done = act(*store);
  if (store != writer_.get() || store->alive()) return done;
  drop_if_dead();
  if (done) return done;
  // Looking does no harm twice: what is durable is still there.
  HOLDFAST_TRY_ASSIGN(FilesStore * other, newest());
  return act(*other);
}

Result<void> Files::change(const Act& act) {
  const std::lock_guard guard(lock_);
  HOLDFAST_TRY_ASSIGN(FilesStore * store, writing());
  last_change_ = Clock::now();
  ++changed_;
  auto done = act(*store);
  drop_if_dead();
  return done;
}

void Files::drop_if_dead() {
  if (!writer_ || writer_->alive()) return;
  if (durable_ != changed_) ++losses_;
  writer_.reset();
  reader_.reset();
}

uint64_t Files::losses() {
  const std::lock_guard guard(lock_);
  return losses_;
}

Result<void> Files::sync() {
  const std::lock_guard guard(lock_);
  if (!writer_ || durable_ == changed_) return {};
  // The lock is held: whoever waited meanwhile finds its changes durable.
  const auto synced = writer_->sync();
  if (synced) durable_ = changed_;
  drop_if_dead();
  return synced;
}

void Files::writer_opened() {
  const std::lock_guard guard(lock_);
  ++open_writers_;
}

void Files::writer_closed() {
  const std::lock_guard guard(lock_);
  --open_writers_;
}

void Files::tick(Clock::time_point now, bool arena_changed) {
  const std::lock_guard guard(lock_);
  if (arena_changed) reader_.reset();
  if (!writer_ || now - last_change_ < kIdle) return;
  if (durable_ != changed_) {
    const auto synced = writer_->sync();
    if (synced) durable_ = changed_;
    drop_if_dead();
    if (!synced || !writer_) return;  // tried again at the next tick; fsync reports it meanwhile
  }
  if (open_writers_ > 0) return;
  writer_.reset();
  reader_.reset();
}

std::string Files::status() {
  const std::lock_guard guard(lock_);
  if (read_only_) return "read-only: mounted so";
  if (writer_) return writer_is_remote_ ? "written through the agent" : "written by this mount";
  if (!why_read_only_.empty()) return "read-only: " + why_read_only_;
  return "writable";
}

}  // namespace holdfast::fs
