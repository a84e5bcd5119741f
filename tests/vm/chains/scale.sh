# shellcheck shell=dash
# Holdfast with as many mappings as a container may have, frames coming in all the time: what each
# phase takes from the freeze to the registered mappings, per mapping and per GiB. Times are the guest's,
# under emulation; only what is divided by another time of the same guest is held against an aim.

ARENA=/dev/dax1.0

# number FILE KEY: the first such number in a JSON document.
number() { tr ',{}[]' '\n' <"$1" | sed -n "s/^ *\"$2\": *\([0-9][0-9]*\).*/\1/p" | head -n 1; }

# step FILE KEY VALUE: the sum of the durations of all steps of this kind.
step() {
  tr -d ' \n' <"$1" | sed 's/[{}]/\n/g' | grep "\"$2\":\"$3\"" | tr ',' '\n' |
    sed -n 's/^"\(duration_ns\|ns\)":\([0-9]*\)$/\2/p' | awk '{ sum += $1 } END { printf "%.0f", sum }'
}

BYTES=1313378304 # all mappings together

# figure NAME NS: one line, in ms, ns a mapping and ms a GiB.
figure() {
  awk -v name="$CHAIN $1" -v ns="$2" -v bytes=$BYTES 'BEGIN {
    printf "HOLDFAST-VM: figure %s: %.1f ms, %.0f ns a mapping, %.1f ms a GiB\n", name, ns / 1e6,
      ns / 65535, ns / 1e6 / (bytes / 1073741824) }'
}

step1() {
  scenario "$CHAIN"
  try "the NIC is bound" bind "$NIC"
  try "devdax from memmap=" devdax 0
  try "devdax for the arena" devdax 1
  configure $ARENA
  expect 0 "an arena on devdax" holdfast init --for-mappings 65535 $ARENA
  agent_start
  boot_files
  driver_start vm0 live_driver "$NIC" /dev/dax0.0 vm0 guest-ram scale || show_log
  map_ns=$(sed -n 's/^scale: .* map_ns //p' /run/vm0.out)
  map_ns=$((map_ns * 65535 / 63485))
  echo "$map_ns" >/state/map-ns
  figure "map, through the library" "$map_ns"
  begin=$(ticks)
  arm
  say "figure $CHAIN load: $(($(ticks) - begin))0 ms"
  expect 0 "frozen, to be adopted" holdfast freeze --policy adopt --json
  cp "$OUT" /tmp/freeze.json
  figure freeze "$(number /tmp/freeze.json total_ns)"
  for name in capture stage hold compare seal; do
    figure "freeze: $name" "$(step /tmp/freeze.json step $name)"
  done
  raw_adopt mark /dev/dax0.0 2
  kill -KILL "$(cat /run/vm0.pid)"
  agent_end KILL
  sed 's/^/    /' /sys/kernel/iommu_preserve/domains
  say "figure $CHAIN pool: $(cat /sys/kernel/iommu_preserve/pool_used) bytes"
  leave 2 last_words
}

# verify_against_map NS NS: the aim.
verify_against_map() {
  say "figure $CHAIN verify / map: $(awk -v a="$1" -v b="$2" 'BEGIN { printf "%.3f", a / b }')"
  if [ $(($1 * 5)) -gt "$2" ]; then fail "verifying takes more than 0.2 of mapping"; fi
}

last_words() {
  raw_adopt mark /dev/dax0.0 3
  kexec -e
}

step2() {
  scenario "$CHAIN"
  say "figure $CHAIN kernel, to its first program: $(ticks)0 ms"
  try "the NIC is bound again" bind "$NIC"
  configure $ARENA
  agent_start
  begin=$(ticks)
  expect 0 "the plan" holdfast plan
  says "adopt 65534 of 65535 mappings" "adopt the last mapping"
  say "figure $CHAIN plan, the whole command: $(($(ticks) - begin))0 ms"
  expect 0 "restored" holdfast restore --json
  cp "$OUT" /tmp/restore.json
  checksums_ns=$(number /tmp/restore.json checksums_ns)
  inspect_ns=$(number /tmp/restore.json inspect_ns)
  figure "verify: checksums" "$checksums_ns"
  figure "verify: live tables, devices, memory" "$inspect_ns"
  figure adopt "$(number /tmp/restore.json duration_ns)"
  figure "adopt: the ioctls" "$(step /tmp/restore.json verb map-ranges)"
  verify_against_map $((checksums_ns + inspect_ns)) "$(cat /state/map-ns)"
  raw_adopt mark /dev/dax0.0 4
  raw_adopt mark /dev/dax0.0 5
  adopt-driver vm0 >/run/adopt-driver.out 2>&1 &
  taker=$!
  wait_for 60 "the new driver" grep -q "^found: " /run/adopt-driver.out
  wait_for 20 "the hold to end" grep -q "state=free,inherited" /sys/kernel/iommu_preserve/domains
  sleep 1
  raw_adopt mark /dev/dax0.0 6
  kill -TERM $taker
  expect 0 "the new driver took it, went on, and gave everything back" wait $taker
  [ -z "$(cat /sys/kernel/iommu_preserve/domains)" ] || fail "a domain is left"
  used=$(cat /sys/kernel/iommu_preserve/pool_used)
  if [ "$used" -gt 24576 ]; then fail "the pool is not empty again: $used bytes"; fi
  kernel_is_calm
  done_with "$CHAIN"
}
