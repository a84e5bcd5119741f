# shellcheck shell=bash
# A chain is one run of the emulated machine through several kernels, proving several scenarios on
# the way. chains/CHAIN.sh is its script inside the guest; a chain that needs more than one QEMU
# command line has a function chain_CHAIN here. Sourced by `run`.
# shellcheck disable=SC2154 # $here, $VM_DIR and the like are set by `run`

# Memory that outlives the kernel, away from where kernels put themselves: one range for what the
# devices map, one for the arena.
REGION_MEMMAP=memmap=64M!1G
ARENA_MEMMAP=memmap=64M!1152M

# The devices under test keep their places; the disks are the harness's own.
EDU_DEVICE=(-device "edu,dma_mask=0xffffffffffffffff,addr=10.0")
E1000E_DEVICE=(-device "pcie-root-port,id=slot1,chassis=1,addr=11.0" -netdev "hubport,id=net,hubid=0"
  -device "e1000e,bus=slot1,netdev=net")

# seconds a chain may take: about five times what it takes on an idle machine
chain_limit() {
  local limit
  case $1 in
    ground) limit=90 ;;
    *) limit=240 ;;
  esac
  echo $((limit * ${HOLDFAST_VM_SLOW:-1}))
}

disks() {
  local chain=$1
  truncate -s 1M "$VM_DIR/$chain.state"
  DISKS=(-drive "file=$VM_BOOT_TAR,format=raw,if=none,id=boot,readonly=on"
    -device "virtio-blk-pci,drive=boot,addr=1d.0"
    -drive "file=$VM_DIR/$chain.state,format=raw,if=none,id=state,cache=unsafe"
    -device "virtio-blk-pci,drive=state,addr=1e.0")
}

run_chain() {
  local chain=$1
  CHAIN_LOG=$VM_DIR/$chain.log
  rm -f "$CHAIN_LOG" "$VM_DIR/$chain.state" "$VM_DIR/$chain.ok"
  disks "$chain"
  if declare -F "chain_$chain" >/dev/null; then
    "chain_$chain" && touch "$VM_DIR/$chain.ok"
  else
    run_machine "$CHAIN_LOG" "$(chain_limit "$chain")" \
      "$REGION_MEMMAP $ARENA_MEMMAP vm.chain=$chain vm.step=1" \
      -no-reboot "${DISKS[@]}" "${EDU_DEVICE[@]}" "${E1000E_DEVICE[@]}" &&
      touch "$VM_DIR/$chain.ok"
  fi
  return 0
}
