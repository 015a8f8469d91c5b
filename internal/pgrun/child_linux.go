package pgrun

import (
	"fmt"
	"os"
	"syscall"
)

// attributes of a child: its own process group, so that Ctrl-C in a terminal
// reaches us and not the database we still need for draining; and a signal
// for when we are gone.
func attributes(as *syscall.Credential, orphaned syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: as, Setpgid: true, Pdeathsig: orphaned}
}

// runsIn tells whether a process works in dir, as a postmaster does in its
// data folder. One we may not look at is another user's and cannot be it.
func runsIn(pid int, dir string) bool {
	cwd, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	data, err := os.Stat(dir)
	return err == nil && os.SameFile(cwd, data)
}

// freeBytes is the space left in a file system; 0 when there is none.
func freeBytes(path string) uint64 {
	var stat syscall.Statfs_t
	if syscall.Statfs(path, &stat) != nil {
		return 0
	}
	return stat.Bavail * uint64(stat.Bsize)
}
