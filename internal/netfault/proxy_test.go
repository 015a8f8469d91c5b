package netfault

import (
	"bufio"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// echo answers each line with its name and the line, until the test ends.
func echo(t *testing.T, name string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var open []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, c)
			mu.Unlock()
			wg.Go(func() {
				defer c.Close()
				lines := bufio.NewReader(c)
				for {
					line, err := lines.ReadString('\n')
					if err != nil {
						return
					}
					if _, err := io.WriteString(c, name+" "+line); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for _, c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return l.Addr().String()
}

func listen(t *testing.T, target string) *Proxy {
	t.Helper()
	p, err := Listen(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// client is a connection that fails the test when nothing comes.
type client struct {
	t *testing.T
	net.Conn
	lines *bufio.Reader
}

func dial(t *testing.T, p *Proxy) *client {
	t.Helper()
	c, err := net.DialTimeout("tcp", p.Addr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &client{t, c, bufio.NewReader(c)}
}

func (c *client) say(line string) {
	c.t.Helper()
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) hear(want string) {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.lines.ReadString('\n')
	if err != nil || line != want+"\n" {
		c.t.Fatalf("heard %q (%v), want %q", line, err, want)
	}
}

// quiet checks that nothing has come; it can only wait a moment for it.
func (c *client) quiet() {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
		c.t.Fatal(err)
	}
	line, err := c.lines.ReadString('\n')
	if ne, ok := errors.AsType[net.Error](err); !ok || !ne.Timeout() {
		c.t.Fatalf("heard %q (%v), want nothing", line, err)
	}
}

func (c *client) gone() {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		c.t.Fatal(err)
	}
	if line, err := c.lines.ReadString('\n'); !errors.Is(err, syscall.ECONNRESET) {
		c.t.Fatalf("heard %q (%v), want a reset", line, err)
	}
}

func breakIt(t *testing.T, p *Proxy, f Fault) {
	t.Helper()
	if err := p.Break(f); err != nil {
		t.Fatal(err)
	}
}

func TestForwardsAndChangesTarget(t *testing.T) {
	t.Parallel()
	p := listen(t, echo(t, "one"))
	first := dial(t, p)
	first.say("a")
	first.hear("one a")
	p.SetTarget(echo(t, "two"))
	second := dial(t, p)
	second.say("b")
	second.hear("two b")
	first.say("c")
	first.hear("one c")
	if n := p.Open(); n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
}

// An orderly end of one direction leaves the other one open.
func TestHalfCloseIsHandedOn(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := listen(t, l.Addr().String())
	c := dial(t, p)
	c.say("all of it")
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if text, err := io.ReadAll(server); err != nil || string(text) != "all of it\n" {
		t.Fatalf("the server read %q, %v", text, err)
	}
	if _, err := io.WriteString(server, "answer\n"); err != nil {
		t.Fatal(err)
	}
	server.Close()
	c.hear("answer")
	if _, err := c.lines.ReadString('\n'); !errors.Is(err, io.EOF) {
		t.Errorf("after the answer: %v, want the end", err)
	}
}

func TestCutResetsBothEnds(t *testing.T) {
	t.Parallel()
	p := listen(t, echo(t, "one"))
	c := dial(t, p)
	c.say("a")
	c.hear("one a")
	if n := p.Cut(); n != 1 {
		t.Errorf("%d connections were cut, want 1", n)
	}
	c.gone()
	again := dial(t, p)
	again.say("b")
	again.hear("one b")
}

func TestRefuse(t *testing.T) {
	t.Parallel()
	p := listen(t, echo(t, "one"))
	old := dial(t, p)
	old.say("a")
	old.hear("one a")
	for range 3 { // the port is kept from one time to the next
		breakIt(t, p, Fault{Refuse: true})
		if c, err := net.DialTimeout("tcp", p.Addr(), patience); !errors.Is(err, syscall.ECONNREFUSED) {
			if err == nil {
				c.Close()
			}
			t.Fatalf("dialling: %v, want a refusal", err)
		}
		old.say("b")
		old.hear("one b")
		if err := p.Heal(); err != nil {
			t.Fatal(err)
		}
		c := dial(t, p)
		c.say("c")
		c.hear("one c")
	}
}

func TestStall(t *testing.T) {
	t.Parallel()
	p := listen(t, echo(t, "one"))
	old := dial(t, p)
	old.say("a")
	old.hear("one a")
	breakIt(t, p, Fault{Stall: true})
	fresh := dial(t, p)
	old.say("b")
	fresh.say("c")
	old.quiet()
	fresh.quiet()
	if err := p.Heal(); err != nil {
		t.Fatal(err)
	}
	old.hear("one b")
	fresh.hear("one c")
}

// With answers stalled the target does what it is asked to, and a cut loses its word.
func TestStallAnswersThenCut(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := listen(t, l.Addr().String())
	c := dial(t, p)
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	breakIt(t, p, Fault{StallAnswers: true})
	c.say("do it")
	if line, err := bufio.NewReader(server).ReadString('\n'); err != nil || line != "do it\n" {
		t.Fatalf("the server read %q, %v", line, err)
	}
	if _, err := io.WriteString(server, "done\n"); err != nil {
		t.Fatal(err)
	}
	c.quiet()
	p.Cut()
	c.gone()
}

// A stalled connection can be cut too, and so can one that was never forwarded.
func TestCutWhileStalled(t *testing.T) {
	t.Parallel()
	p := listen(t, echo(t, "one"))
	old := dial(t, p)
	old.say("a")
	old.hear("one a")
	breakIt(t, p, Fault{Stall: true})
	fresh := dial(t, p)
	for deadline := time.Now().Add(patience); p.Open() < 2; {
		if time.Now().After(deadline) {
			t.Fatal("the second connection never came")
		}
		fresh.quiet()
	}
	if n := p.Cut(); n != 2 {
		t.Errorf("%d connections were cut, want 2", n)
	}
	old.gone()
	fresh.gone()
}

// Only a lower bound can be checked: two pieces of data wait once each.
func TestDelay(t *testing.T) {
	t.Parallel()
	const delay = 30 * time.Millisecond
	p := listen(t, echo(t, "one"))
	breakIt(t, p, Fault{Delay: delay})
	c := dial(t, p)
	start := time.Now()
	c.say("a")
	c.hear("one a")
	if took := time.Since(start); took < 2*delay {
		t.Errorf("question and answer took %v, want at least %v", took, 2*delay)
	}
}

func TestUnreachableTarget(t *testing.T) {
	t.Parallel()
	p := listen(t, "127.0.0.1:1")
	c, err := net.DialTimeout("tcp", p.Addr(), patience)
	if err == nil { // else the reset was faster
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("%v, want a reset", err)
	}
}

// Close ends every goroutine, whatever it waits for, and may be called twice.
func TestClose(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]Fault{"healthy": {}, "stalled": {Stall: true}, "slow": {Delay: time.Hour}, "refusing": {Refuse: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := listen(t, echo(t, "one"))
			c := dial(t, p)
			c.say("a")
			c.hear("one a")
			breakIt(t, p, f)
			c.say("b")
			p.Close()
			p.Close()
			if err := p.Heal(); err == nil {
				t.Error("a closed proxy was healed")
			}
		})
	}
}
