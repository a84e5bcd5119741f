// Ends the emulated machine through isa-debug-exit: the one exit status that the host accepts.

#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <unistd.h>

int main(int argc, char** argv) {
  int code = argc > 1 ? atoi(argv[1]) : 2;
  sync();
  if (iopl(3) != 0) {
    perror("iopl");
    return 1;
  }
  outl((unsigned int)(32 + code), 0xf4);
  return 1;
}
