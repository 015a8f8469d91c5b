package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
)

// counter stands between a service and PostgreSQL and counts round trips: each
// Sync or simple Query of the frontend, for which the client waits. It is used
// for a run of its own, whose speed is not looked at.
type counter struct {
	listener net.Listener
	to       string
	trips    atomic.Int64
	conns    sync.WaitGroup
}

// countRoundTrips returns a counter and the database's address through it.
func countRoundTrips(ctx context.Context, databaseURL string) (*counter, string, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return nil, "", err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, "", err
	}
	c := &counter{listener: l, to: u.Host}
	u.Host = l.Addr().String()
	go c.accept(ctx)
	return c, u.String(), nil
}

func (c *counter) accept(ctx context.Context) {
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			return
		}
		c.conns.Go(func() { c.pass(ctx, conn) })
	}
}

// stop ends it; its connections must be closed by their clients.
func (c *counter) stop() {
	_ = c.listener.Close()
	c.conns.Wait()
}

func (c *counter) pass(ctx context.Context, client net.Conn) {
	defer func() { _ = client.Close() }()
	server, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.to)
	if err != nil {
		return
	}
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, server)
		_ = client.Close()
	})
	_, _ = io.Copy(server, io.TeeReader(client, &frontend{trips: &c.trips}))
	_ = server.Close()
	back.Wait()
}

// frontend reads the messages of a client: after the first, which has no type,
// each is a byte and a length that counts itself.
type frontend struct {
	trips   *atomic.Int64
	head    []byte
	started bool
	skip    int
}

func (f *frontend) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		if f.skip > 0 {
			passed := min(f.skip, len(b))
			f.skip -= passed
			b = b[passed:]
			continue
		}
		f.head = append(f.head, b[0])
		b = b[1:]
		at := 1
		if !f.started {
			at = 0
		}
		if len(f.head) < at+4 {
			continue
		}
		length := int(binary.BigEndian.Uint32(f.head[at:]))
		if length < 4 {
			return n, errors.New("not PostgreSQL's protocol")
		}
		if f.started && (f.head[0] == 'S' || f.head[0] == 'Q') {
			f.trips.Add(1)
		}
		f.skip, f.head, f.started = length-4, f.head[:0], true
	}
	return n, nil
}
