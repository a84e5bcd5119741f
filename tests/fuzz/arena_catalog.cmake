holdfast_fuzzer(arena_catalog SOURCES arena_catalog.cc LINKS holdfast_arena)
