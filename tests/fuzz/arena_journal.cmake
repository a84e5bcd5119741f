holdfast_fuzzer(arena_journal SOURCES arena_journal.cc LINKS holdfast_arena)
