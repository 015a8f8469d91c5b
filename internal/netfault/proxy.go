// Package netfault is a network that breaks when told to: a TCP proxy on
// loopback between a client and a server, for tests and for the chaos program.
// It is no part of the service.
package netfault

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// dialTimeout bounds the wait for a target that does not answer.
const dialTimeout = 5 * time.Second

// Fault says what is wrong with the network. The zero value is one that works.
type Fault struct {
	// Refuse: nobody listens, so that new connections are refused. Open ones
	// stay: Cut ends them.
	Refuse bool
	// Delay: every piece of data waits this long, in both directions.
	Delay time.Duration
	// Stall: connections stay open, new ones are taken, nothing goes through.
	// What was sent meanwhile arrives when the fault is over.
	Stall bool
	// StallAnswers: the same, but only from the target to the client. A Cut then
	// loses answers to what the target has done.
	StallAnswers bool
}

// Proxy forwards connections to its target. All methods may be called at any
// time and by several goroutines.
type Proxy struct {
	addr   *net.TCPAddr
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // the accepting goroutine and those of connections

	mu       sync.Mutex
	target   string
	fault    Fault
	changed  chan struct{} // closed, and made anew, with each change of fault
	reserved int           // a socket that is bound to the port and never listens
	listener net.Listener  // nil while connections are refused
	conns    map[*conn]struct{}
	closed   bool
}

// conn is one connection of a client; fields but done are guarded by Proxy.mu.
type conn struct {
	client, server net.Conn // server is nil until the target has answered
	done           chan struct{}
	ended          bool
}

// Listen starts a proxy to target (host:port) on a free port of 127.0.0.1.
func Listen(target string) (*Proxy, error) {
	reserved, port, err := reservePort()
	if err != nil {
		return nil, fmt.Errorf("netfault: %w", err)
	}
	p := &Proxy{
		addr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}, reserved: reserved,
		target: target, changed: make(chan struct{}), conns: make(map[*conn]struct{}),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.listen(); err != nil {
		p.cancel()
		_ = syscall.Close(reserved)
		return nil, fmt.Errorf("netfault: %w", err)
	}
	return p, nil
}

// reservePort binds a socket to a free port without listening, so that nobody
// else is given the port while connections are refused.
func reservePort() (socket, port int, err error) {
	syscall.ForkLock.RLock()
	socket, err = syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(socket)
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return 0, 0, fmt.Errorf("making a socket: %w", err)
	}
	// With this on both, another socket may listen where this one is only bound.
	err = syscall.SetsockoptInt(socket, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1)
	if err == nil {
		err = syscall.Bind(socket, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}})
	}
	var name syscall.Sockaddr
	if err == nil {
		name, err = syscall.Getsockname(socket)
	}
	if err != nil {
		_ = syscall.Close(socket)
		return 0, 0, fmt.Errorf("reserving a port: %w", err)
	}
	return socket, name.(*syscall.SockaddrInet4).Port, nil
}

// Addr is where clients connect to: host:port. It never changes.
func (p *Proxy) Addr() string { return p.addr.String() }

// SetTarget changes where new connections lead. Open ones stay where they are.
func (p *Proxy) SetTarget(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}

// Break replaces what is wrong with the network.
func (p *Proxy) Break(f Fault) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("netfault: the proxy is closed")
	}
	if f.Refuse && p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	if !f.Refuse && p.listener == nil {
		if err := p.listen(); err != nil {
			return fmt.Errorf("netfault: %w", err)
		}
	}
	p.fault = f
	close(p.changed)
	p.changed = make(chan struct{})
	return nil
}

// Heal ends every fault: what was stalled goes on.
func (p *Proxy) Heal() error { return p.Break(Fault{}) }

// Cut resets all open connections at both ends, what is under way is lost, and
// returns how many there were.
func (p *Proxy) Cut() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.conns)
	for c := range p.conns {
		p.reset(c)
	}
	return n
}

// Open is how many connections are open.
func (p *Proxy) Open() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.conns)
}

// Close resets all connections and frees the port; it waits for every goroutine.
// Twice does no harm.
func (p *Proxy) Close() {
	p.mu.Lock()
	if !p.closed {
		p.closed = true
		p.cancel()
		if p.listener != nil {
			_ = p.listener.Close()
		}
		for c := range p.conns {
			p.reset(c)
		}
		_ = syscall.Close(p.reserved)
	}
	p.mu.Unlock()
	p.wg.Wait()
}

// listen wants p.mu held.
func (p *Proxy) listen() error {
	l, err := (&net.ListenConfig{}).Listen(p.ctx, "tcp4", p.addr.String())
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	p.listener = l
	p.wg.Go(func() { p.accept(l) })
	return nil
}

// accept ends when its listener is closed.
func (p *Proxy) accept(l net.Listener) {
	for {
		client, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // the client is gone already, or we are out of files
			select {
			case <-time.After(10 * time.Millisecond):
			case <-p.ctx.Done():
				return
			}
			continue
		}
		c := &conn{client: client, done: make(chan struct{})}
		p.mu.Lock()
		if p.listener != l { // refused while it was being taken
			drop(client)
			p.mu.Unlock()
			return
		}
		p.conns[c] = struct{}{}
		if p.closed {
			p.reset(c)
		} else {
			p.wg.Go(func() { p.serve(c) })
		}
		p.mu.Unlock()
	}
}

// serve forwards one connection until both directions have ended.
func (p *Proxy) serve(c *conn) {
	target, ok := p.pass(c, func(f Fault) bool { return f.Stall })
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		p.spoil(c)
		return
	}
	p.mu.Lock()
	if c.ended {
		p.mu.Unlock()
		drop(server)
		return
	}
	c.server = server
	p.mu.Unlock()

	var answers sync.WaitGroup
	answers.Go(func() { p.forward(c, c.client, server, func(f Fault) bool { return f.Stall || f.StallAnswers }) })
	p.forward(c, server, c.client, func(f Fault) bool { return f.Stall })
	answers.Wait()
	p.end(c)
}

// forward copies one direction. An orderly end is handed on as such, so that the
// other direction may go on; a broken one breaks both.
func (p *Proxy) forward(c *conn, to, from net.Conn, stalled func(Fault) bool) {
	buffer := make([]byte, 32<<10)
	for {
		n, readErr := from.Read(buffer)
		// The end of a connection waits as its data does.
		if _, ok := p.pass(c, stalled); !ok {
			return
		}
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				p.spoil(c)
				return
			}
		}
		if errors.Is(readErr, io.EOF) {
			if half, ok := to.(*net.TCPConn); ok {
				_ = half.CloseWrite() // fails only when it is gone already
			}
			return
		}
		if readErr != nil {
			p.spoil(c)
			return
		}
	}
}

// pass waits until the fault lets data of the connection through. It returns the
// target of that moment, and false when the connection has ended.
func (p *Proxy) pass(c *conn, stalled func(Fault) bool) (string, bool) {
	delayed := false
	for {
		p.mu.Lock()
		fault, changed, target := p.fault, p.changed, p.target
		p.mu.Unlock()
		var over <-chan time.Time
		switch {
		case stalled(fault):
		case fault.Delay > 0 && !delayed:
			over = time.After(fault.Delay)
		default:
			select {
			case <-c.done:
				return "", false
			default:
				return target, true
			}
		}
		select {
		case <-over:
			delayed = true
		case <-changed:
		case <-c.done:
			return "", false
		}
	}
}

// end closes both ends after both directions have ended in order.
func (p *Proxy) end(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.ended {
		return
	}
	p.forget(c)
	_ = c.client.Close()
	_ = c.server.Close()
}

// spoil resets both ends of a connection that broke at one.
func (p *Proxy) spoil(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reset(c)
}

// reset wants p.mu held.
func (p *Proxy) reset(c *conn) {
	if c.ended {
		return
	}
	p.forget(c)
	drop(c.client)
	if c.server != nil {
		drop(c.server)
	}
}

// forget wants p.mu held.
func (p *Proxy) forget(c *conn) {
	c.ended = true
	close(c.done)
	delete(p.conns, c)
}

// drop closes a connection with a reset instead of an orderly end.
func drop(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
