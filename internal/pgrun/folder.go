package pgrun

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	runPrefix = "cardorder-pg-"
	lockName  = "lock"

	// A server whose parent was killed needs a moment to shut down.
	lockPatience = 5 * time.Second

	// maxTempRoot leaves room for "/cardorder-pg-0123456789/s/.s.PGSQL.65535"
	// in the 103 bytes that every platform allows for a socket's path.
	maxTempRoot = 103 - 41

	// memoryRoot is a file system in memory, where there is one. Containers
	// often have a tiny one, which would not do.
	memoryRoot = "/dev/shm"
	minMemory  = 2 << 30
)

// serverAccount is the user to run the server as: nil, our own, unless we are
// root, whom PostgreSQL refuses.
func serverAccount() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(u.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(u.Gid, 10, 32)
		if errUID == nil && errGID == nil && uid != 0 {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody to run it as: run as an ordinary user")
}

// reachable tells whether the server's user can enter dir, by trying: mode
// bits alone would miss access lists and mounts.
func reachable(ctx context.Context, binDir string, as *syscall.Credential, dir string) bool {
	if as == nil {
		return true
	}
	_, err := run(ctx, as, dir, filepath.Join(binDir, "postgres"), "--version")
	return err == nil
}

// tempRoots are where private folders may go, best first. Memory makes
// cloning a database some ten times faster than a disk, even without fsync.
func tempRoots(cfg Config) []string {
	roots := []string{os.TempDir(), "/tmp"}
	if cfg.Dir == "" && !cfg.Fsync && freeBytes(memoryRoot) >= minMemory {
		roots = slices.Insert(roots, 0, memoryRoot)
	}
	return roots
}

// tempRoot is the first of roots whose name is short enough for a socket and
// that the server's user can reach.
func tempRoot(ctx context.Context, binDir string, as *syscall.Credential, roots []string) (string, error) {
	for _, dir := range roots {
		if len(dir) <= maxTempRoot && reachable(ctx, binDir, as, dir) {
			return dir, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	return "", fmt.Errorf("none of %s can hold the server's socket: set TMPDIR to a short path that every user may enter", roots)
}

// keptFolder makes Config.Dir, or the folder that stands in for it.
func keptFolder(ctx context.Context, cfg Config, as *syscall.Credential) (string, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return "", err
	}
	if as == nil {
		return dir, os.MkdirAll(dir, 0o700)
	}
	_, err = os.Stat(dir)
	missing := errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	if reachable(ctx, cfg.BinDir, as, dir) {
		return dir, nil
	}
	if missing {
		_ = os.Remove(dir)
	}
	hash := sha256.Sum256([]byte(dir))
	standIn := fmt.Sprintf("/var/tmp/cardorder-%d-%x", os.Geteuid(), hash[:6])
	if err := os.Mkdir(standIn, 0o711); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// Anybody can make a folder in /var/tmp, also one of this name.
	if !ours(standIn) {
		return "", fmt.Errorf("user %d, whom PostgreSQL runs as, cannot reach %s, and %s belongs to somebody else", as.Uid, dir, standIn)
	}
	if err := openTo(standIn, as); err != nil {
		return "", err
	}
	cfg.Logger.Warn("the postgres user cannot reach the folder for its data, using another", "wanted", dir, "used", standIn, "uid", as.Uid)
	return standIn, nil
}

// ours tells whether path is a folder, no link, that belongs to us.
func ours(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// openTo lets the server's user pass through a folder of ours, not look around in it.
func openTo(dir string, as *syscall.Credential) error {
	if as == nil {
		return nil
	}
	return os.Chmod(dir, 0o711)
}

// makeOwned makes a folder for the server alone.
func makeOwned(dir string, as *syscall.Credential) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return give(dir, as)
}

func give(path string, as *syscall.Credential) error {
	if as == nil {
		return nil
	}
	return os.Chown(path, int(as.Uid), int(as.Gid))
}

// errLocked says that a live process holds the lock of a folder.
var errLocked = errors.New("in use")

// lockFolder locks a folder for as long as the file, or a child's copy of it,
// is open. The kernel lets go of it however the holders end.
func lockFolder(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		return f, nil
	}
	f.Close()
	if errors.Is(err, syscall.EWOULDBLOCK) {
		err = errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}

// waitForLock is lockFolder that waits for other holders until ctx ends.
func waitForLock(ctx context.Context, dir string) (*os.File, error) {
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for {
		lock, err := lockFolder(dir)
		if !errors.Is(err, errLocked) {
			return lock, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-retry.C:
		}
	}
}

// lockKept locks the folder of a cluster.
func lockKept(ctx context.Context, logger *slog.Logger, dir string) (*os.File, error) {
	lock, err := lockFolder(dir)
	if !errors.Is(err, errLocked) {
		return lock, err
	}
	logger.Info("the postgres folder is in use, waiting for it", "dir", dir)
	ctx, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	if lock, err = waitForLock(ctx, dir); errors.Is(err, errLocked) {
		err = inUse(dir, postmasterPID(filepath.Join(dir, "data")))
	}
	return lock, err
}

func inUse(dir string, pid int) error {
	if pid == 0 {
		return fmt.Errorf("%s is in use by another process", dir)
	}
	return fmt.Errorf("%s is in use by a running PostgreSQL (process %d): stop that one first, or use another folder", dir, pid)
}

// checkPostmaster fails when a server that is not ours (ours hold the lock)
// runs the cluster. A postmaster.pid left behind by a crash is postgres's own
// business, but for one case: when its process id now belongs to a stranger,
// which is common in containers, postgres would refuse to start.
func checkPostmaster(data string) error {
	pid := postmasterPID(data)
	if pid == 0 || errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
		return nil
	}
	if runsIn(pid, data) {
		return inUse(data, pid)
	}
	return os.Remove(filepath.Join(data, "postmaster.pid"))
}

// postmasterPID reads postmaster.pid; 0 when there is none.
func postmasterPID(data string) int {
	text, _ := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// removeOrphans removes private folders whose processes were all killed.
// Failures do not matter: the next start tries again.
func removeOrphans(temp string) {
	found, _ := filepath.Glob(filepath.Join(temp, runPrefix+"*")) // finds nothing in a strange TMPDIR
	for _, dir := range found {
		info, err := os.Lstat(dir)
		// A folder this young may be about to get its lock.
		if err != nil || time.Since(info.ModTime()) < time.Minute || !ours(dir) {
			continue
		}
		lock, err := lockFolder(dir)
		if err != nil {
			continue
		}
		_ = os.RemoveAll(dir)
		lock.Close()
	}
}
