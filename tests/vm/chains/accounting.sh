# shellcheck shell=dash
# The kernel's own tests (vfio_iommu_type1_test.c of the series), which ran while it booted. They are in
# its log as KTAP.

CASES=14

step1() {
  scenario adopt-accounting
  dmesg | sed 's/^\[[^]]*\] //' >/tmp/log
  sed -n '/^KTAP version/,/^# Totals\|^\(not \)\?ok 1 /p' /tmp/log | sed 's/^/    /'
  grep -q "^ok 1 vfio_live_update$" /tmp/log || fail "the suite did not end with ok"
  plan=$(sed -n '/# Subtest: vfio_live_update/,$s/^ *1\.\.//p' /tmp/log | head -n 1)
  [ "$plan" = $CASES ] || fail "the kernel has ${plan:-no} cases, not $CASES"
  # One that is skipped says so in the same line.
  passed=$(grep -c '^ *ok [0-9]* live_[a-z_]*$' /tmp/log)
  [ "$passed" = $CASES ] || fail "$passed of $CASES cases passed"
  if grep -q '^ *not ok' /tmp/log; then fail "$(grep -m 1 '^ *not ok' /tmp/log)"; fi
  say "ok $SCENARIO: $passed cases"
  kernel_is_calm
  done_with adopt-accounting
}
