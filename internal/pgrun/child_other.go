//go:build !linux

package pgrun

import "syscall"

// attributes of a child: its own process group, so that Ctrl-C in a terminal
// reaches us and not the database we still need for draining. There is no
// signal for orphans here.
func attributes(as *syscall.Credential, _ syscall.Signal) *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: as, Setpgid: true}
}

// runsIn would tell whether a process works in dir; here we cannot know, so
// we keep away from the folder.
func runsIn(int, string) bool { return true }

// freeBytes would be the space left in a file system; it is asked only about
// one in memory, which there is none of here.
func freeBytes(string) uint64 { return 0 }
