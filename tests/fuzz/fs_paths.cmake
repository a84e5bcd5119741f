holdfast_fuzzer(fs_paths
  SOURCES fs_paths.cc ${CMAKE_SOURCE_DIR}/tests/unit/fs/fake_source.cc
  LINKS holdfast_fs)
