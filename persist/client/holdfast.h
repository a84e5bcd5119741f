/* libholdfast: a VMM or user-space driver tells Holdfast what it maps for its devices.
 *
 *   hf_connect -> hf_register_container/device/memory -> hf_map ... hf_unmap -> hf_close
 *
 * Every call returns 0 or a negative errno; `error` (may be NULL) then says what, why and what to
 * do. Nothing here ends or stops the program: without an agent, or when it dies, hf_map and
 * hf_unmap go on making the kernel's calls, and only the record is lost (hf_reconnect, then
 * hf_resync).
 *
 * Threads: any thread may call anything; hf_close only when no other call is under way. Calls on
 * one container run one after the other, so that the record has the kernel's order; different
 * containers run in parallel. After fork() the child's copy of a connection records nothing.
 *
 * Growth: structs that the caller fills begin with `size` (sizeof the struct as compiled); a newer
 * library takes a shorter one and uses defaults for the rest.
 */
#ifndef HOLDFAST_H
#define HOLDFAST_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define HF_API __attribute__((visibility("default")))
#else
#define HF_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct hf_connection hf_connection;
typedef struct hf_container hf_container; /* freed by hf_unregister_container or hf_close */
typedef struct hf_memory hf_memory;       /* freed by hf_unregister_memory or hf_close */

typedef struct hf_error {
  int exit_code; /* as the exit status of the holdfast command: 1 failed, 4 unsupported, 5 refused
                  */
  int sys_errno; /* errno of a failed system call, or 0 */
  char code[64]; /* stable HF-... name, or empty */
  char object[256]; /* what it is about */
  char cause[512];
  char remedy[256]; /* what to do next, or empty */
} hf_error;

HF_API const char* hf_version(void); /* "0.1.0" */

/* -- connection ---------------------------------------------------------------------------------
 */

#define HF_CONNECT_OPTIONAL 1u /* no agent: return a connection that records nothing, and 0 */

typedef struct hf_callbacks {
  size_t size;
  void* user; /* first argument of each */
  /* Stop your devices' DMA, then call hf_quiesced(), here or later but within timeout_ms. Without
   * this callback QUIESCE is answered "cannot". */
  void (*quiesce)(void* user, hf_connection* connection, uint64_t freeze, uint32_t timeout_ms);
  void (*frozen)(void* user, hf_connection* connection, uint64_t generation);
  /* A freeze ended or did not come about: devices may run again. */
  void (*thawed)(void* user, hf_connection* connection, const char* why);
  /* The agent is gone; recording has stopped. hf_reconnect() when it is back. */
  void (*lost)(void* user, hf_connection* connection, const char* why);
  /* Another process (`successor`: "pid 4711 (qemu)") asks for a container of this one. Answer with
   * hf_hand_over() or hf_keep(), here or later, on any thread, within timeout_ms. Without this
   * callback the answer is "no". */
  void (*hand_over)(void* user, hf_connection* connection, hf_container* container,
                    uint64_t handover, const char* successor, uint32_t timeout_ms);
} hf_callbacks;

typedef struct hf_connect_options {
  size_t size;
  const char* socket;            /* NULL: $HOLDFAST_SOCKET, else /run/holdfast/agent.sock */
  const char* program;           /* for the agent's log; NULL: the program's name */
  uint32_t flags;                /* HF_CONNECT_OPTIONAL */
  uint32_t timeout_ms;           /* of each request; 0: 5000 */
  uint32_t full_wait_ms;         /* how long a record waits for room in the ring; 0: 250 */
  const hf_callbacks* callbacks; /* copied; NULL: none */
  uint32_t handover_ms;          /* from HF_TAKE_FROM_OWNER to its end; 0: 10000 */
} hf_connect_options;

HF_API int hf_connect(const hf_connect_options* options, hf_connection** out, hf_error* error);
/* Ends the connection. The agent drops its duplicates of the descriptors at once, but for
 * containers with hold_seconds. */
HF_API void hf_close(hf_connection* connection);
/* Connects again after the agent went away, and registers everything again. Every container is then
 * incomplete (freeze refuses) until hf_resync(). Not between hf_begin and hf_end. */
HF_API int hf_reconnect(hf_connection* connection, hf_error* error);
HF_API int hf_is_connected(const hf_connection* connection); /* 1 or 0 */

/* -- registering --------------------------------------------------------------------------------
 */

/* The one call for opting in, in place of VFIO_SET_IOMMU: the container's page tables outlive this
 * kernel, and a freeze with policy adopt carries its devices' DMA through a kexec. After the first
 * group is in the container, before anything is mapped; then register it as
 * HF_KIND_TYPE1_PRESERVED. No agent is needed for it. -EOPNOTSUPP: this kernel cannot
 * (HF-KERNEL-PRESERVE) or this device cannot (HF-OPT-IN-DEVICE); the container is as it was, and
 * VFIO_SET_IOMMU works as ever. From then on memory that the next kernel may hand out cannot be
 * mapped (HF-MAP-NOT-RESERVED), unless it is left behind: HF_LEAVE_BEHIND. */
HF_API int hf_opt_in(int container_fd, hf_error* error);

enum {
  HF_KIND_TYPE1 = 1,
  HF_KIND_TYPE1_PRESERVED = 2,
  HF_KIND_IOMMUFD = 3, /* an address space (IOAS) of /dev/iommu; each is a container of its own */
  HF_KIND_SIM = 5
};

typedef struct hf_container_options {
  size_t size;
  const char* name;      /* unique on the host: A-Z a-z 0-9 . _ - */
  uint32_t kind;         /* HF_KIND_... */
  int fd;                /* duplicated; needs a group attached and its IOMMU set (type1) */
  uint32_t hold_seconds; /* custody after this process' death; 0: none */
  uint32_t ioas_id;      /* HF_KIND_IOMMUFD: the address space in `fd`; 0 for other kinds */
} hf_container_options;

HF_API int hf_register_container(hf_connection* connection, const hf_container_options* options,
                                 hf_container** out, hf_error* error);
/* Forgets it, its devices and its mappings; what the kernel has mapped is not touched. */
HF_API int hf_unregister_container(hf_container* container, hf_error* error);
HF_API int hf_hold(hf_container* container, uint32_t seconds, hf_error* error);

#define HF_CONSENTS_TO_REINIT 1u /* this program re-initialises the device after a reset */
/* `group_fd` -1: the kind has no groups, as iommufd; the device is bound and attached already. */
HF_API int hf_register_device(hf_container* container, const char* bdf, int group_fd, int device_fd,
                              uint32_t flags, hf_error* error);

/* `fd` (duplicated) is the memory that mappings point into; `path`, where it has one, is how it is
 * opened again in the next kernel. */
HF_API int hf_register_memory(hf_connection* connection, const char* name, int fd, const char* path,
                              hf_memory** out, hf_error* error);
HF_API int hf_unregister_memory(hf_memory* memory, hf_error* error);

/* Where this process has the memory: its first byte, the whole of it mapped shared. hf_map() learns
 * it by itself; a program that maps by its own calls, has moved the memory, or takes a container
 * over from another process says it. */
HF_API int hf_set_address(hf_memory* memory, void* address, hf_error* error);

/* -- mapping ------------------------------------------------------------------------------------
 */

enum { HF_READ = 1, HF_WRITE = 2 }; /* what the device may do */
/* With these, in an opted-in container: the memory need not outlive the kernel. The kernel removes
 * the mapping on the way down, and it is not restored: `memory` may be NULL. */
enum { HF_LEAVE_BEHIND = 4 };

typedef struct hf_mapping {
  uint64_t iova;   /* bytes, multiple of 4096 */
  uint64_t size;   /* bytes, multiple of 4096, not 0 */
  uint64_t offset; /* in the memory, bytes, multiple of 4096 */
  hf_memory* memory;
  uint32_t access; /* HF_READ | HF_WRITE, HF_LEAVE_BEHIND */
  uint32_t reserved;
} hf_mapping;

/* Makes the kernel's map call for [iova, iova+size) -> vaddr and records it. -EBUSY (HF-FROZEN): a
 * freeze is under way or stands; nothing was mapped. Other errors are the kernel's own. */
HF_API int hf_map(hf_container* container, const hf_mapping* mapping, void* vaddr, hf_error* error);
/* Unmaps what lies in [iova, iova+size) and records it; `unmapped` (may be NULL) in bytes. */
HF_API int hf_unmap(hf_container* container, uint64_t iova, uint64_t size, uint64_t* unmapped,
                    hf_error* error);
HF_API int hf_unmap_all(hf_container* container, uint64_t* unmapped, hf_error* error);

/* For programs that make the kernel's calls themselves:
 *   hf_begin (0, or -EBUSY: frozen) -> own map or unmap call -> hf_record_* if it succeeded ->
 * hf_end hf_begin locks the container for this thread until hf_end. None of these makes a system
 * call, unless the ring is full or the agent asked to be woken. Recording never fails the program:
 * a record that found no room makes the container incomplete. */
HF_API int hf_begin(hf_container* container);
HF_API void hf_record_map(hf_container* container, const hf_mapping* mapping);
HF_API void hf_record_unmap(hf_container* container, uint64_t iova, uint64_t size);
HF_API void hf_end(hf_container* container);

/* Returns when everything recorded before is durable in the arena. */
HF_API int hf_sync(hf_connection* connection, hf_error* error);
/* Replaces the record of a container by this list (sorted by iova): everything that is mapped now.
 */
HF_API int hf_resync(hf_container* container, const hf_mapping* mappings, size_t count,
                     hf_error* error);

/* The kernel's calls; for other kernels than the running one (the simulated one, tests). Each
 * returns 0 or a negative errno. By itself hf_map asks VFIO type1; in an HF_KIND_IOMMUFD container
 * iommufd, where a `memory` whose descriptor is a memfd, hugetlb or tmpfs file is mapped by that
 * file (IOMMU_IOAS_MAP_FILE), so that it can be handed over, and everything else by its address. */
typedef struct hf_kernel_map {
  uint64_t iova, size;
  void* vaddr;
  uint32_t access;
  int memory_fd;
  uint64_t memory_offset;
  uint32_t ioas_id; /* HF_KIND_IOMMUFD: the address space in container_fd; else 0 */
} hf_kernel_map;
typedef struct hf_kernel_ops {
  size_t size;
  void* context; /* first argument of each */
  int (*map)(void* context, int container_fd, const hf_kernel_map* request);
  int (*unmap)(void* context, int container_fd, uint64_t iova, uint64_t size, uint64_t* unmapped);
  int (*unmap_all)(void* context, int container_fd, uint64_t* unmapped);
  /* For hand-over (VFIO_DMA_UNMAP_FLAG_VADDR, VFIO_DMA_MAP_FLAG_VADDR); NULL: not possible. */
  int (*suspend_all)(void* context, int container_fd);
  int (*suspend)(void* context, int container_fd, uint64_t iova, uint64_t size);
  int (*resume)(void* context, int container_fd, uint64_t iova, uint64_t size, void* vaddr);
  /* HF_KIND_IOMMUFD, in place of both; iova 0, size UINT64_MAX: everything. NULL: -EOPNOTSUPP. */
  int (*unmap_ioas)(void* context, int container_fd, uint32_t ioas_id, uint64_t iova, uint64_t size,
                    uint64_t* unmapped);
} hf_kernel_ops;
/* NULL: back to the running kernel. Before the first hf_map. */
HF_API int hf_set_kernel_ops(hf_connection* connection, const hf_kernel_ops* ops);

/* -- events -------------------------------------------------------------------------------------
 */

/* Readable when hf_dispatch has something to do; owned by the connection, the same over reconnects.
 */
HF_API int hf_event_fd(const hf_connection* connection);
/* Calls the callbacks of everything that has arrived, on this thread; does not wait. Returns how
 * many, or a negative errno. */
HF_API int hf_dispatch(hf_connection* connection, hf_error* error);
/* Answers a quiesce callback. accepted 1: no device of this program does DMA any more. */
HF_API int hf_quiesced(hf_connection* connection, uint64_t freeze, int accepted, const char* why);

/* -- handing over ------------------------------------------------------------------------------
 *
 * Another process becomes the owner of a container while both live; its devices' DMA goes on.
 * The one that has it:  callback hand_over -> hf_hand_over()
 * The one that gets it: hf_take(HF_TAKE_FROM_OWNER) -> mmap() what hf_taken names ->
 *                       hf_set_address() for each -> hf_taken_confirm()
 */

/* Gives the container away and returns when the successor has it: 0, and `container` of the
 * callback is good for nothing any more (-EBUSY, until hf_close frees it); this program closes its
 * descriptors of it and unmaps nothing. Or it stays with
 * this program, as it was (HF-HANDOVER-RETURNED, the cause says who and what; exit_code 6: some
 * mappings have no address here, DMA goes on through them). Waits, at most for the callback's
 * timeout_ms; meanwhile maps and unmaps of this container are -EBUSY, others go on. */
HF_API int hf_hand_over(hf_connection* connection, uint64_t handover, hf_error* error);
/* Answers "no"; `why` reaches the successor. */
HF_API int hf_keep(hf_connection* connection, uint64_t handover, const char* why, hf_error* error);

/* -- taking up again ----------------------------------------------------------------------------
 */

typedef struct hf_taken_device {
  char bdf[16];
  int group_fd;  /* -1: none */
  int device_fd; /* -1: none */
} hf_taken_device;
typedef struct hf_taken_memory {
  char name[72];
  int fd;
  uint64_t length; /* bytes */
  hf_memory* memory;
} hf_taken_memory;
/* Descriptors are the caller's: set one to -1 to keep it beyond hf_taken_free. */
typedef struct hf_taken {
  hf_container* container; /* registered; map and unmap as usual */
  uint32_t kind;
  int container_fd;
  size_t device_count;
  hf_taken_device* devices;
  size_t memory_count;
  hf_taken_memory* memory;
  size_t mapping_count;
  hf_mapping* mappings; /* sorted by iova */
  uint32_t ioas_id;     /* HF_KIND_IOMMUFD: the address space in container_fd; else 0 */
} hf_taken;

#define HF_TAKE_CONFIRM_LATER                                              \
  1u /* hf_taken_confirm() when this program is ready; until then maps and \
        unmaps of it are -EBUSY, and dying gives it back to the agent */
#define HF_TAKE_FROM_OWNER                                                     \
  2u /* whoever has it is asked; waits for the answer. Confirmed later always: \
        when hf_set_address() has said where this program has the memory */
HF_API int hf_take(hf_connection* connection, const char* name, uint32_t flags, hf_taken** out,
                   hf_error* error);
/* What hf_set_address() says before it is what the mappings become: this program's, accounted to
 * it. Not said, what the agent had taken up stays accounted to the agent. Wrong addresses
 * (HF-HANDOVER-MEMORY, -PLACES, -ADDRESS) can be put right and confirmed again; after any other
 * error it is the owner's again. */
HF_API int hf_taken_confirm(hf_taken* taken, hf_error* error);
/* Before hf_close(). Closes the descriptors that are not -1. What was confirmed stays registered;
 * what was not goes back to whoever had it, and `container` is freed. */
HF_API void hf_taken_free(hf_taken* taken);

#ifdef __cplusplus
}
#endif

#endif /* HOLDFAST_H */
