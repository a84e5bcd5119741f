# holdfast_test(test_NAME SOURCES a_test.cc ... LINKS lower ... [LABEL unit|crash] [TIMEOUT s]):
# one GoogleTest executable. Its cases are known to ctest as NAME.Suite.Case, so that
# `./dev test NAME` runs one folder and `./dev test Suite.Case` one case. In a sanitizer build the
# time limit of a case is five times as long.
function(holdfast_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;LINKS" ${ARGN})
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(HOLDFAST_SANITIZE)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 5")
  endif()
  string(REGEX REPLACE "^test_" "" folder ${name})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_LINKS} holdfast_test_support holdfast_flags
    GTest::gmock_main)
  gtest_discover_tests(${name} TEST_PREFIX "${folder}." DISCOVERY_MODE PRE_TEST
    DISCOVERY_TIMEOUT 60 PROPERTIES LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT})
endfunction()

# holdfast_fuzzer(NAME SOURCES fuzz.cc LINKS lower ...): a libFuzzer target; its corpus, where one
# is committed, is tests/fuzz/corpus/NAME. `fuzzers` builds all; build/bin/fuzz_NAME is the program.
function(holdfast_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_executable(fuzz_${name} ${ARG_SOURCES})
  target_link_libraries(fuzz_${name} PRIVATE ${ARG_LINKS} holdfast_flags)
  target_link_options(fuzz_${name} PRIVATE -fsanitize=fuzzer)
  add_dependencies(fuzzers fuzz_${name})
  set_property(GLOBAL APPEND PROPERTY HOLDFAST_FUZZERS ${name})
endfunction()
