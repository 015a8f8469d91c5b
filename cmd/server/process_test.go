package main_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// binary is the server, built once. Its folder can be entered by every user.
var binary string

func TestMain(m *testing.M) {
	code, err := buildAndRun(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func buildAndRun(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "cardorder-server-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o711); err != nil {
		return 0, err
	}
	binary = filepath.Join(dir, "server")
	if out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput(); err != nil {
		return 0, fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return m.Run(), nil
}

// patience is how long a process may take for what it must do; a test that
// passes never waits for so long.
const patience = 3 * time.Minute

// sharedDir is a temporary folder that PostgreSQL's user can enter even when the
// tests run as root; t.TempDir is not.
func sharedDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "cardorder-server-test-") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	return dir
}

// process is a running server.
type process struct {
	t              *testing.T
	cmd            *exec.Cmd
	stdout, stderr output
	ended          chan struct{}
	family         map[relative]string // it and its descendants, as far as seen
}

// output is what a process has written so far.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// option changes a command before it starts.
type option func(*exec.Cmd)

func in(dir string) option { return func(c *exec.Cmd) { c.Dir = dir } }

func with(env ...string) option { return func(c *exec.Cmd) { c.Env = append(c.Env, env...) } }

func start(t *testing.T, args []string, options ...option) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(binary, args...), ended: make(chan struct{}), family: make(map[relative]string)}
	p.cmd.Env = os.Environ()
	for _, o := range options {
		o(p.cmd)
	}
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = time.Second // a descendant that kept our pipes must not keep us
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // the state says it all
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			t.Logf("server %s wrote\n%s%s", strings.Join(args, " "), p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// run runs a server to its end.
func run(t *testing.T, args []string, options ...option) *process {
	t.Helper()
	p := start(t, args, options...)
	p.wait()
	return p
}

// wait waits for the process's end and returns its exit code.
func (p *process) wait() int {
	p.t.Helper()
	p.eventually("the process ends", func() bool {
		p.look()
		select {
		case <-p.ended:
			return true
		default:
			return false
		}
	})
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	p.look()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) wantExit(code int) {
	p.t.Helper()
	if got := p.wait(); got != code {
		p.t.Fatalf("exit code %d, want %d (%s): %s", got, code, p.cmd.ProcessState, p.stderr.String())
	}
}

// eventually waits until done, for as long as patience lasts.
func (p *process) eventually(what string, done func() bool) {
	p.t.Helper()
	eventually(p.t, what, done)
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !done() {
		select {
		case <-again.C:
		case <-deadline.C:
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// relative is a process; its start tells it from a later one with its number.
type relative struct{ pid, started string }

// look remembers the descendants of the process that live now.
func (p *process) look() {
	children := make(map[string][]relative)
	names := make(map[relative]string)
	for _, e := range entries("/proc") {
		if _, err := strconv.Atoi(e); err != nil {
			continue
		}
		if r, parent, name, ok := stat(e); ok {
			children[parent] = append(children[parent], r)
			names[r] = name
		}
	}
	queue := children[strconv.Itoa(p.cmd.Process.Pid)]
	for len(queue) > 0 {
		r := queue[0]
		p.family[r] = names[r]
		queue = append(queue[1:], children[r.pid]...)
	}
}

func entries(dir string) []string {
	found, _ := os.ReadDir(dir) // without /proc there is nothing to see
	names := make([]string, len(found))
	for i, e := range found {
		names[i] = e.Name()
	}
	return names
}

// stat reads /proc/pid/stat; one that is dead, but not yet waited for, is gone.
func stat(pid string) (r relative, parent, name string, ok bool) {
	text, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return r, "", "", false
	}
	head, rest, _ := strings.Cut(string(text), " (")
	end := strings.LastIndex(rest, ") ") // a name may hold anything
	if end < 0 {
		return r, "", "", false
	}
	fields := strings.Fields(rest[end+2:])
	const state, ppid, starttime = 0, 1, 19
	if len(fields) <= starttime || fields[state] == "Z" || fields[state] == "X" {
		return r, "", "", false
	}
	return relative{head, fields[starttime]}, fields[ppid], rest[:end], true
}

// wantNobody waits until no descendant lives, and no process works in dir.
func (p *process) wantNobody(dir string) {
	p.t.Helper()
	p.eventually("the descendants end", func() bool {
		for r := range p.family {
			if now, _, _, ok := stat(r.pid); ok && now == r {
				return false
			}
		}
		return dir == "" || len(workingIn(dir)) == 0
	})
}

// wantFamily demands that PostgreSQL was seen, or wantNobody would mean nothing.
func (p *process) wantFamily() {
	p.t.Helper()
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		return
	}
	for _, name := range p.family {
		if strings.Contains(name, "postgres") {
			return
		}
	}
	p.t.Errorf("no PostgreSQL among %v", p.family)
}

func workingIn(dir string) []string {
	var pids []string
	for _, e := range entries("/proc") {
		if cwd, err := os.Readlink("/proc/" + e + "/cwd"); err == nil && strings.HasPrefix(cwd, dir+"/") {
			pids = append(pids, e)
		}
	}
	return pids
}

var client = &http.Client{Timeout: patience}

// ask makes a request; status 0 means that nobody answered.
func ask(t *testing.T, method, url, token string, body string, header ...string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(r)
	if err != nil {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return 0, ""
		}
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(text)
}

func wantParts(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q is missing in: %s", part, text)
		}
	}
}
