package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a service under measurement, with its log in a file.
type process struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
	log   string
}

func startProcess(dir, name string, env []string, binary string, args ...string) (*process, error) {
	p := &process{name: name, log: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	p.cmd = exec.Command(binary, args...)
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = dir, append(os.Environ(), env...), log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", name, err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	}()
	return p, nil
}

// awaitReady asks url until it answers 200.
func (p *process) awaitReady(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errors.New(p.name+" is not ready, see "+p.log))
	defer cancel()
	for {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if res, err := http.DefaultClient.Do(r); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
		}
		if p.hasEnded() {
			return errors.New(p.name + " ended, see " + p.log)
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// stop ends it, in order if it comes to that within some seconds.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(3 * time.Second): // the call to D1 that never ends
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// kill ends it at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

func (p *process) hasEnded() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// peakRSS is the most memory that the process had since resetPeak, in bytes.
func (p *process) peakRSS() (int64, error) {
	file, err := os.Open(p.proc("status"))
	if err != nil {
		return 0, err
	}
	defer func() { _ = file.Close() }()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) == 3 && fields[0] == "VmHWM:" {
			kb, err := strconv.ParseInt(fields[1], 10, 64)
			return kb << 10, err
		}
	}
	return 0, errors.New("no VmHWM for " + p.name)
}

func (p *process) resetPeak() error { return os.WriteFile(p.proc("clear_refs"), []byte("5"), 0) }

func (p *process) proc(name string) string {
	return filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid), name)
}

// clockTick is USER_HZ, which Linux fixes at 100 for all who read /proc.
const clockTick = time.Second / 100

// times are what /proc/<pid>/stat tells.
type times struct {
	parent        int
	own, children time.Duration // of CPU; children that have ended
}

func readTimes(pid int) (times, error) {
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return times{}, err
	}
	// The second field is a name in brackets, which may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 15 {
		return times{}, errors.New("/proc/" + strconv.Itoa(pid) + "/stat is not understood")
	}
	var n [15]int64
	for i := range n {
		n[i], _ = strconv.ParseInt(fields[i], 10, 64) // the state is a letter
	}
	return times{
		parent: int(n[1]), own: time.Duration(n[11]+n[12]) * clockTick, children: time.Duration(n[13]+n[14]) * clockTick,
	}, nil
}

// cpuOfTree is the CPU time of a process and all its children, also of those
// that have ended.
func cpuOfTree(pid int) (time.Duration, error) {
	t, err := readTimes(pid)
	if err != nil {
		return 0, err
	}
	sum := t.own + t.children
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	for _, e := range entries {
		child, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if t, err := readTimes(child); err == nil && t.parent == pid { // else it has just ended
			sum += t.own
		}
	}
	return sum, nil
}

// ownCPU is the CPU time of this process.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// freeAddresses returns n different addresses on which nobody listens.
func freeAddresses(ctx context.Context, n int) ([]string, error) {
	var list []string
	for range n {
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer func() { _ = l.Close() }() // not before all are chosen
		list = append(list, l.Addr().String())
	}
	return list, nil
}
