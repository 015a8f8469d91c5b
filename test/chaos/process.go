package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"cardorder/internal/netfault"
)

// startLogged starts a program with its output appended to a log.
func startLogged(dir, logName string, env []string, binary string, args ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(dir, logName), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(binary, args...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = dir, env, log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", filepath.Base(binary), err)
	}
	return cmd, nil
}

// replica is one `server serve`, with a breakable network on each of its sides.
// Something starts it again whenever it ends, as an orchestrator would.
type replica struct {
	name            string
	dir             string
	env             []string
	binary          string
	config          string
	api             string          // where it listens itself
	toAPI           *netfault.Proxy // between core banking and it
	toDatabase      *netfault.Proxy
	toD1            *netfault.Proxy
	notificationsAt string // where it listens for D1

	mu      sync.Mutex
	cmd     *exec.Cmd // nil between an end and the next start
	ended   chan struct{}
	wanted  bool          // the end that comes is one that we asked for
	away    time.Duration // how long it stays away after that
	ready   bool          // it has answered since it was started
	stopped bool          // by SIGSTOP
	starts  int
	deaths  []string // ends that nobody asked for
}

// run keeps the replica running until ctx ends, and then ends it in order.
func (r *replica) run(ctx context.Context) {
	for ctx.Err() == nil {
		cmd, err := startLogged(r.dir, r.name+".log", r.env, r.binary, "serve", "--config", r.config)
		if err != nil {
			r.mu.Lock()
			r.deaths = append(r.deaths, err.Error())
			r.mu.Unlock()
			return
		}
		ended := make(chan struct{})
		r.mu.Lock()
		r.cmd, r.ended, r.ready, r.wanted = cmd, ended, false, false
		r.starts++
		r.mu.Unlock()
		watching, done := context.WithCancel(ctx)
		go r.watch(watching, ended)
		waited := make(chan error, 1)
		go func() { waited <- cmd.Wait() }()
		select {
		case err = <-waited:
		case <-ctx.Done():
			err = r.finish(cmd, waited)
		}
		done()
		close(ended)
		pause := 300 * time.Millisecond
		r.mu.Lock()
		switch {
		case r.wanted:
			pause = r.away
		case ctx.Err() != nil && err == nil:
		case r.ready:
			r.deaths = append(r.deaths, fmt.Sprint(err))
		default:
			r.deaths = append(r.deaths, fmt.Sprintf("before it was ready: %v", err))
		}
		r.cmd, r.stopped = nil, false
		r.mu.Unlock()
		sleep(ctx, pause)
	}
}

// drainLimit is how long a replica may take to end in order: above the time that
// the service grants itself.
const drainLimit = 20 * time.Second

// finish ends the process at the end of a run.
func (r *replica) finish(cmd *exec.Cmd, waited chan error) error {
	_ = cmd.Process.Signal(syscall.SIGCONT)
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-waited:
		return err
	case <-time.After(drainLimit):
		_ = cmd.Process.Kill()
		<-waited //nolint:errcheck // it says that it was killed
		return fmt.Errorf("did not stop within %v", drainLimit)
	}
}

// watch notes when the process is ready.
func (r *replica) watch(ctx context.Context, ended chan struct{}) {
	client := &http.Client{Timeout: time.Second}
	for ctx.Err() == nil {
		if answers(ctx, client, "http://"+r.api+"/readyz") {
			r.mu.Lock()
			r.ready = r.ended == ended
			r.mu.Unlock()
			return
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

func answers(ctx context.Context, client *http.Client, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	res, err := client.Do(req)
	if err != nil {
		return false
	}
	_ = res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// awaitReady returns when the replica has answered since its last start.
func (r *replica) awaitReady(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		r.mu.Lock()
		ready := r.cmd != nil && r.ready
		r.mu.Unlock()
		if ready {
			return nil
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return fmt.Errorf("%s is not ready after %v", r.name, limit)
		}
	}
}

// up tells whether the replica is likely to answer.
func (r *replica) up() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.cmd != nil && r.ready && !r.stopped
}

// kill ends the replica without warning; it stays away for a while.
func (r *replica) kill(away time.Duration) { r.end(syscall.SIGKILL, away) }

// end sends the signal of an end that is asked for, and returns what tells when
// it has come; nil when there was nothing to end.
func (r *replica) end(signal syscall.Signal, away time.Duration) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == nil {
		return nil
	}
	r.wanted, r.away = true, away
	_ = r.cmd.Process.Signal(signal)
	return r.ended
}

// freeze stops the replica's time for a while, but not the time of its leases.
func (r *replica) freeze(ctx context.Context, d time.Duration) {
	r.mu.Lock()
	cmd := r.cmd
	if cmd != nil {
		r.stopped = true
		_ = cmd.Process.Signal(syscall.SIGSTOP)
	}
	r.mu.Unlock()
	sleep(ctx, d)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.cmd == cmd && cmd != nil {
		_ = cmd.Process.Signal(syscall.SIGCONT)
		r.stopped = false
	}
}

// sleep waits, and tells whether ctx lasted.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
