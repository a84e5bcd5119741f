/* The public header is C11, and a C program links the library. */
#include "holdfast.h"

#include <string.h>

int holdfast_c_compiles(void);

int holdfast_c_compiles(void) {
  hf_connect_options options = {.size = sizeof options, .socket = "/nonexistent/agent.sock"};
  hf_connection* connection = NULL;
  hf_error error;
  const int outcome = hf_connect(&options, &connection, &error);
  return outcome < 0 && connection == NULL && error.cause[0] != '\0' &&
                 strcmp(error.code, "HF-NO-AGENT") == 0
             ? outcome
             : 0;
}
