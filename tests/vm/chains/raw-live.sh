# shellcheck shell=dash
# Without Holdfast: a NIC fills its ring while the kernel is replaced. The process that set it up is
# gone before the kexec; the hold keeps everything running.

step1() {
  scenario adopt-live
  try "devdax from memmap=" devdax 0
  try "the NIC is bound to vfio-pci" bind "$NIC"
  try "kexec image loads" plain_load
  expect 0 "the ring runs, the container is held" raw_adopt run "$NIC" /dev/dax0.0
  show_out
  try "about to leave" raw_adopt mark /dev/dax0.0 3
  leave 2 kexec -e
}

step2() {
  scenario adopt-live
  cat /sys/kernel/iommu_preserve/domains
  native_is_kept_out "$NIC"
  try "the NIC is bound again" bind "$NIC"
  expect 0 "what must be refused" raw_adopt wrong "$NIC" /dev/dax0.0
  show_out
  expect 0 "adopted" raw_adopt adopt "$NIC" /dev/dax0.0
  show_out
  kernel_is_calm
  done_with adopt-live
}
