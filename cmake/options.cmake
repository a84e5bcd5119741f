set(CMAKE_CXX_STANDARD 23)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)

if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE RelWithDebInfo CACHE STRING "build type" FORCE)
endif()

option(HOLDFAST_TESTS "build the tests" ON)
option(HOLDFAST_BENCH "build the benchmarks" OFF)
option(HOLDFAST_FUZZ "build the libFuzzer targets (needs clang)" OFF)
set(HOLDFAST_SANITIZE "" CACHE STRING "sanitizers for the whole tree: address,undefined or thread")

include(GNUInstallDirs)

# Every binary of a build tree lands where scripts expect it.
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)
set(CMAKE_ARCHIVE_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/lib)

add_library(holdfast_flags INTERFACE)
target_compile_options(holdfast_flags INTERFACE
  -Wall -Wextra -Werror -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor
  $<$<COMPILE_LANGUAGE:CXX>:-Woverloaded-virtual>
  -fno-omit-frame-pointer -fstack-protector-strong)
target_compile_definitions(holdfast_flags INTERFACE _FILE_OFFSET_BITS=64 _GNU_SOURCE
  HOLDFAST_VERSION="${PROJECT_VERSION}")
target_include_directories(holdfast_flags INTERFACE ${CMAKE_SOURCE_DIR})

if(HOLDFAST_SANITIZE)
  # -O1 -g1: half the time to compile, and reports still name file and line.
  target_compile_options(holdfast_flags INTERFACE -fsanitize=${HOLDFAST_SANITIZE}
    -fno-sanitize-recover=all -O1 -g1)
  target_link_options(holdfast_flags INTERFACE -fsanitize=${HOLDFAST_SANITIZE})
  # gcc 12 sees uninitialised members where it has instrumented their destructors; the ordinary build
  # keeps the warning.
  target_compile_options(holdfast_flags INTERFACE -Wno-maybe-uninitialized)
  target_compile_definitions(holdfast_flags INTERFACE HOLDFAST_SANITIZED=1)
endif()

if(HOLDFAST_FUZZ)
  # The whole tree is instrumented; only the fuzz_* programs link libFuzzer's main. The warning rules
  # are those of g++, so clang's own opinions do not stop a fuzz build.
  target_compile_options(holdfast_flags INTERFACE -fsanitize=fuzzer-no-link,address,undefined
    -fno-sanitize-recover=all -Wno-error -w)
  target_link_options(holdfast_flags INTERFACE -fsanitize=address,undefined)
  target_compile_definitions(holdfast_flags INTERFACE HOLDFAST_SANITIZED=1
    FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION=1)
endif()

# holdfast_uninstrumented(TARGET): holdfast_flags for what is loaded into programs that are not ours,
# which no sanitizer has prepared: it is never instrumented.
function(holdfast_uninstrumented target)
  if(NOT HOLDFAST_SANITIZE)
    target_link_libraries(${target} PRIVATE holdfast_flags)
    return()
  endif()
  get_target_property(options holdfast_flags INTERFACE_COMPILE_OPTIONS)
  list(FILTER options EXCLUDE REGEX sanitize)
  get_target_property(definitions holdfast_flags INTERFACE_COMPILE_DEFINITIONS)
  list(FILTER definitions EXCLUDE REGEX SANITIZED)
  target_compile_options(${target} PRIVATE ${options})
  target_compile_definitions(${target} PRIVATE ${definitions})
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
endfunction()

# holdfast_library(NAME SOURCES a.cc b.cc LINKS lower ...): a static library of one folder.
function(holdfast_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC holdfast_flags ${ARG_LINKS})
endfunction()
