/* Counts the calls with which a process changes files below a folder, and kills it before one.
 *
 * Preloaded into the fork server, so every rank has it. It does nothing until a rank calls
 * `faults_arm`. Children of the rank are not counted. Calls that are counted are also written to a
 * log, one line each: nanoseconds, number, name, path, second path. fsync is logged after it
 * returned, everything else before it is done. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char root[PATH_MAX];
static size_t root_length;
static pid_t owner;
static long kill_at = -1;
static int tears;
static int log_fd = -1;
static atomic_long seen;

void faults_arm(const char *folder, long at, int half, const char *log) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    kill_at = at;
    tears = half;
    if (*log)
        log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    atomic_store(&seen, 0);
    owner = getpid();
}

long faults_seen(void) { return atomic_load(&seen); }

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void note(long number, const char *name, const char *path, const char *other) {
    char line[2 * PATH_MAX + 100];
    struct timespec now;
    if (log_fd < 0)
        return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long at = now.tv_sec * 1000000000LL + now.tv_nsec;
    int length = snprintf(line, sizeof line, "%lld\t%ld\t%s\t%s\t%s\n", at, number, name, path, other);
    syscall(SYS_write, log_fd, line, (size_t)length);
}

static int is_below(const char *path) {
    if (!owner || owner != getpid() || strncmp(path, root, root_length) != 0)
        return 0;
    return path[root_length] == '/' || path[root_length] == 0;
}

static void full_path(int folder, const char *path, char *out) {
    char base[PATH_MAX];
    if (path[0] == '/') {
        snprintf(out, PATH_MAX, "%s", path);
        return;
    }
    ssize_t length = -1;
    if (folder == AT_FDCWD) {
        length = getcwd(base, sizeof base) ? (ssize_t)strlen(base) : -1;
    } else {
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = readlink(link, base, sizeof base - 1);
    }
    base[length < 0 ? 0 : length] = 0;
    if (snprintf(out, PATH_MAX, "%s%s%s", base, *path ? "/" : "", path) >= PATH_MAX)
        out[PATH_MAX - 1] = 0;
}

/* 1: this is the call at which to die, after half of the write. */
static int event(const char *name, int folder, const char *path, int other_folder,
                 const char *other) {
    char whole[PATH_MAX], second[PATH_MAX] = "";
    if (!owner || owner != getpid())
        return 0;
    full_path(folder, path, whole);
    if (other)
        full_path(other_folder, other, second);
    if (!is_below(whole) && !(other && is_below(second)))
        return 0;
    long number = atomic_fetch_add(&seen, 1);
    int is_write = strstr(name, "write") != NULL;
    if (number == kill_at && !(is_write && tears))
        die();
    if (!strstr(name, "sync"))
        note(number, name, whole, second);
    return number == kill_at;
}

static void synced(const char *name, int fd) {
    char whole[PATH_MAX];
    if (!owner || owner != getpid())
        return;
    full_path(fd, "", whole);
    if (is_below(whole))
        note(-1, name, whole, "");
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    if (event("write", fd, "", 0, NULL)) {
        real(fd, data, size / 2);
        die();
    }
    return real(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite);
    if (event("pwrite", fd, "", 0, NULL)) {
        real(fd, data, size / 2, at);
        die();
    }
    return real(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    if (event("pwrite", fd, "", 0, NULL)) {
        real(fd, data, size / 2, at);
        die();
    }
    return real(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    if (event("writev", fd, "", 0, NULL)) {
        real(fd, parts, (count + 1) / 2);
        die();
    }
    return real(fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    REAL(pwritev);
    if (event("pwritev", fd, "", 0, NULL)) {
        real(fd, parts, (count + 1) / 2, at);
        die();
    }
    return real(fd, parts, count, at);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (event("write by copy_file_range", out, "", 0, NULL)) {
        real(in, from, out, to, size / 2, flags);
        die();
    }
    return real(in, from, out, to, size, flags);
}

ssize_t sendfile(int out, int in, off_t *from, size_t size);
ssize_t sendfile(int out, int in, off_t *from, size_t size) {
    REAL(sendfile);
    if (event("write by sendfile", out, "", 0, NULL)) {
        real(out, in, from, size / 2);
        die();
    }
    return real(out, in, from, size);
}

int fsync(int fd) {
    REAL(fsync);
    event("fsync", fd, "", 0, NULL);
    int found = real(fd);
    synced("fsync", fd);
    return found;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    event("fdatasync", fd, "", 0, NULL);
    int found = real(fd);
    synced("fdatasync", fd);
    return found;
}

int ftruncate(int fd, off_t size) {
    REAL(ftruncate);
    event("ftruncate", fd, "", 0, NULL);
    return real(fd, size);
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    event("ftruncate", fd, "", 0, NULL);
    return real(fd, size);
}

int posix_fallocate(int fd, off_t at, off_t size) {
    REAL(posix_fallocate);
    event("fallocate", fd, "", 0, NULL);
    return real(fd, at, size);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    event("rename", AT_FDCWD, from, AT_FDCWD, to);
    return real(from, to);
}

int renameat(int folder, const char *from, int other, const char *to) {
    REAL(renameat);
    event("rename", folder, from, other, to);
    return real(folder, from, other, to);
}

int unlink(const char *path) {
    REAL(unlink);
    event("unlink", AT_FDCWD, path, 0, NULL);
    return real(path);
}

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    event(flags & AT_REMOVEDIR ? "rmdir" : "unlink", folder, path, 0, NULL);
    return real(folder, path, flags);
}

int rmdir(const char *path) {
    REAL(rmdir);
    event("rmdir", AT_FDCWD, path, 0, NULL);
    return real(path);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    event("mkdir", AT_FDCWD, path, 0, NULL);
    return real(path, mode);
}

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    event("mkdir", folder, path, 0, NULL);
    return real(folder, path, mode);
}

#define OPENER(name, folder, first, given)                            \
    {                                                                 \
        mode_t mode = 0;                                              \
        if (flags & O_CREAT) {                                        \
            va_list more;                                             \
            va_start(more, flags);                                    \
            mode = va_arg(more, mode_t);                              \
            va_end(more);                                             \
        }                                                             \
        REAL(name);                                                   \
        if (flags & (O_CREAT | O_TRUNC))                              \
            event("create", folder, path, 0, NULL);                   \
        return real first;                                            \
    }

int open(const char *path, int flags, ...) OPENER(open, AT_FDCWD, (path, flags, mode), )
int open64(const char *path, int flags, ...) OPENER(open64, AT_FDCWD, (path, flags, mode), )
int openat(int folder, const char *path, int flags, ...)
    OPENER(openat, folder, (folder, path, flags, mode), )
int openat64(int folder, const char *path, int flags, ...)
    OPENER(openat64, folder, (folder, path, flags, mode), )
