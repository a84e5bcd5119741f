/* The smallest program that uses libholdfast from C: built with pkg-config. */
#include <holdfast.h>
#include <stdio.h>

int main(void) {
  hf_connect_options options = {.size = sizeof options, .flags = HF_CONNECT_OPTIONAL};
  hf_connection* connection = NULL;
  hf_error error;
  if (hf_connect(&options, &connection, &error) != 0) return 1;
  printf("libholdfast %s\n", hf_version());
  hf_close(connection);
  return 0;
}
