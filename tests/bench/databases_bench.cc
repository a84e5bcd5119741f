// The same mapping set kept by what a person would otherwise take: SQLite and LMDB. A durable
// commit after 100 changes to 1,000,000 mappings, and loading them all. Here the "floor" is the
// database.

#include <lmdb.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "tests/bench/arena_fixture.h"
#include "tests/bench/measure.h"

namespace holdfast::bench {
namespace {

constexpr uint64_t kChanged = 100;

uint64_t changed_index(uint64_t i) {
  return i * (kMany / kChanged);
}

// -- SQLite: WAL, synchronous=FULL, the mapping in one row keyed by iova
// ----------------------------

class Sqlite {
 public:
  explicit Sqlite(const FilledArena& like) : path_(scratch("mappings.sqlite")) {
    for (const char* suffix : {"", "-wal", "-shm"}) ::unlink((path_ + suffix).c_str());
    if (sqlite3_open(path_.c_str(), &db_) != SQLITE_OK) give_up("SQLite cannot open");
    run("PRAGMA journal_mode=WAL");
    run("PRAGMA synchronous=FULL");
    run("CREATE TABLE mappings(iova INTEGER PRIMARY KEY, size INTEGER, region_offset INTEGER,"
        " region INTEGER, access INTEGER) WITHOUT ROWID");
    if (sqlite3_prepare_v2(db_, "INSERT OR REPLACE INTO mappings VALUES(?,?,?,?,?)", -1, &put_,
                           nullptr) != SQLITE_OK ||
        sqlite3_prepare_v2(db_, "SELECT * FROM mappings ORDER BY iova", -1, &all_, nullptr) !=
            SQLITE_OK)
      give_up("SQLite cannot prepare");
    run("BEGIN");
    for (uint64_t n = 0; n < kMany; ++n) put(like.mapping(n, 0));
    run("COMMIT");
  }
  ~Sqlite() {
    sqlite3_finalize(put_);
    sqlite3_finalize(all_);
    sqlite3_close(db_);
    for (const char* suffix : {"", "-wal", "-shm"}) ::unlink((path_ + suffix).c_str());
  }
  Sqlite(const Sqlite&) = delete;

  void change(const FilledArena& like, uint64_t round) {
    run("BEGIN");
    for (uint64_t i = 0; i < kChanged; ++i) put(like.mapping(changed_index(i), round));
    run("COMMIT");
  }
  void load(std::vector<Mapping>& into) {
    while (sqlite3_step(all_) == SQLITE_ROW)
      into.push_back({.iova = column(0),
                      .size = column(1),
                      .region_offset = column(2),
                      .region = static_cast<uint32_t>(column(3)),
                      .access = static_cast<uint32_t>(column(4))});
    sqlite3_reset(all_);
  }

 private:
  void run(const char* sql) {
    if (sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) != SQLITE_OK)
      give_up(sqlite3_errmsg(db_));
  }
  uint64_t column(int index) { return static_cast<uint64_t>(sqlite3_column_int64(all_, index)); }
  void put(const Mapping& mapping) {
    const uint64_t fields[] = {mapping.iova, mapping.size, mapping.region_offset, mapping.region,
                               mapping.access};
    for (int i = 0; i < 5; ++i)
      sqlite3_bind_int64(put_, i + 1, static_cast<sqlite3_int64>(fields[i]));
    if (sqlite3_step(put_) != SQLITE_DONE) give_up(sqlite3_errmsg(db_));
    sqlite3_reset(put_);
  }
  std::string path_;
  sqlite3* db_ = nullptr;
  sqlite3_stmt* put_ = nullptr;
  sqlite3_stmt* all_ = nullptr;
};

// -- LMDB: keys are big-endian iovas, so that they sort
// ----------------------------------------------

class Lmdb {
 public:
  explicit Lmdb(const FilledArena& like) : path_(scratch("mappings.lmdb")) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directory(path_);
    check(mdb_env_create(&env_));
    check(mdb_env_set_mapsize(env_, 1ull << 30));
    check(mdb_env_open(env_, path_.c_str(), 0, 0600));
    MDB_txn* txn = nullptr;
    check(mdb_txn_begin(env_, nullptr, 0, &txn));
    check(mdb_dbi_open(txn, nullptr, 0, &dbi_));
    for (uint64_t n = 0; n < kMany; ++n) put(txn, like.mapping(n, 0));
    check(mdb_txn_commit(txn));
  }
  ~Lmdb() {
    mdb_env_close(env_);
    std::filesystem::remove_all(path_);
  }
  Lmdb(const Lmdb&) = delete;

  void change(const FilledArena& like, uint64_t round) {
    MDB_txn* txn = nullptr;
    check(mdb_txn_begin(env_, nullptr, 0, &txn));
    for (uint64_t i = 0; i < kChanged; ++i) put(txn, like.mapping(changed_index(i), round));
    check(mdb_txn_commit(txn));
  }
  void load(std::vector<Mapping>& into) {
    MDB_txn* txn = nullptr;
    MDB_cursor* cursor = nullptr;
    check(mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn));
    check(mdb_cursor_open(txn, dbi_, &cursor));
    MDB_val key, value;
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0)
      std::memcpy(&into.emplace_back(), value.mv_data, sizeof(Mapping));
    mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
  }

 private:
  static void check(int status) {
    if (status != 0) give_up(mdb_strerror(status));
  }
  void put(MDB_txn* txn, Mapping mapping) {
    uint64_t iova = __builtin_bswap64(mapping.iova);
    MDB_val key{sizeof iova, &iova}, value{sizeof mapping, &mapping};
    check(mdb_put(txn, dbi_, &key, &value, 0));
  }
  std::string path_;
  MDB_env* env_ = nullptr;
  MDB_dbi dbi_ = 0;
};

// -- measures
// ----------------------------------------------------------------------------------------

template <typename Database>
void commit(benchmark::State& state) {
  FilledArena arena("commit.arena", kMany);
  Database database(arena);
  uint64_t round = 0;
  in_turns(
      state,
      [&] {
        arena.change(2 * kChanged);  // one unmap and one map for each row that changes there
        must(arena.writer().commit());
      },
      [&] { database.change(arena, ++round); }, [](double s) { return s * 1e6; });
}
BENCHMARK(commit<Sqlite>)->Name("commit-vs-sqlite")->UseManualTime()->Iterations(51);
BENCHMARK(commit<Lmdb>)->Name("commit-vs-lmdb")->UseManualTime()->Iterations(51);

template <typename Database>
void load(benchmark::State& state) {
  FilledArena arena("load.arena", kMany);
  Database database(arena);
  const auto check = [](const std::vector<Mapping>& loaded) {
    if (loaded.size() != kMany) give_up("mappings are missing");
  };
  in_turns(
      state,
      [&] {  // opened, every checksum of the generation verified, every mapping copied out
        std::vector<Mapping> loaded;
        loaded.reserve(kMany);
        const auto reader = must(arena::Reader::open(arena.path()));
        const auto view = must(reader.current());
        must(reader.verify(view.manifest().number));
        must(view.mappings(arena.container())).for_each_run([&](std::span<const Mapping> run) {
          loaded.insert(loaded.end(), run.begin(), run.end());
        });
        check(loaded);
      },
      [&] {
        std::vector<Mapping> loaded;
        loaded.reserve(kMany);
        database.load(loaded);
        check(loaded);
      },
      [](double s) { return s * 1e3; });
}
BENCHMARK(load<Sqlite>)->Name("load-vs-sqlite")->UseManualTime()->Iterations(7);
BENCHMARK(load<Lmdb>)->Name("load-vs-lmdb")->UseManualTime()->Iterations(15);

}  // namespace
}  // namespace holdfast::bench
