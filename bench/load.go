package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// load is what one run of clients brought about.
type load struct {
	orders   int // answered 201 within the measured time
	rate     float64
	p50, p99 time.Duration
	errs     map[string]int // everything else, warm-up included
}

// drive lets clients place orders, each on a connection of its own and the next
// one as soon as the answer is there. It begins to count after warm, when it
// calls begin, and calls end when the time is over; answers still under way are
// then waited for.
//
// accepted counts all orders, those outside the measured time included.
//
// It must cost little, since it shares the machine with what it measures: the
// requests are bytes made beforehand, of an answer only the status is read.
func drive(ctx context.Context, address string, f *form, clients int, warm, duration time.Duration, accepted *atomic.Int64, begin, end func() error) (*load, error) {
	return drivePaced(ctx, address, f, clients, 0, warm, duration, accepted, begin, end)
}

// drivePaced is drive with clients that begin no order sooner than so long after the
// one before; 0 lets them go on at once.
func drivePaced(ctx context.Context, address string, f *form, clients int, interval, warm, duration time.Duration, accepted *atomic.Int64, begin, end func() error) (*load, error) {
	conns := make([]*client, clients)
	for i := range conns {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, fmt.Errorf("connecting to the service: %w", err)
		}
		defer func() { _ = conn.Close() }()
		conns[i] = &client{conn: conn, in: bufio.NewReaderSize(conn, 8<<10), form: f.clone(), interval: interval, accepted: accepted, errs: make(map[string]int)}
	}
	var counting, stopped atomic.Bool
	var wg sync.WaitGroup
	for _, c := range conns {
		wg.Go(func() { c.run(ctx, &counting, &stopped) })
	}
	defer func() {
		stopped.Store(true)
		wg.Wait()
	}()
	if err := pause(ctx, warm); err != nil {
		return nil, err
	}
	if err := begin(); err != nil {
		return nil, err
	}
	started := time.Now()
	counting.Store(true)
	err := pause(ctx, duration)
	counting.Store(false)
	took := time.Since(started)
	if err := errors.Join(err, end()); err != nil {
		return nil, err
	}
	stopped.Store(true)
	wg.Wait()
	l := &load{errs: make(map[string]int)}
	var all []time.Duration
	for _, c := range conns {
		all = append(all, c.took...)
		for text, n := range c.errs {
			l.errs[text] += n
		}
	}
	l.orders, l.rate = len(all), float64(len(all))/took.Seconds()
	l.p50, l.p99 = quantiles(all)
	return l, nil
}

func quantiles(all []time.Duration) (p50, p99 time.Duration) {
	if len(all) == 0 {
		return 0, 0
	}
	slices.Sort(all)
	return all[len(all)/2], all[len(all)*99/100]
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// patience is for how long anything is waited for.
const patience = time.Minute

// until asks again and again whether something is so.
func until(ctx context.Context, every time.Duration, failure string, reached func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New(failure))
	defer cancel()
	for {
		ok, err := reached()
		if err != nil || ok {
			return err
		}
		if err := pause(ctx, every); err != nil {
			return err
		}
	}
}

// client is one connection of core banking.
type client struct {
	conn     net.Conn
	in       *bufio.Reader
	form     *form
	interval time.Duration
	accepted *atomic.Int64
	took     []time.Duration
	errs     map[string]int
}

func (c *client) run(ctx context.Context, counting, stopped *atomic.Bool) {
	next := time.Now()
	for !stopped.Load() {
		if c.interval > 0 {
			if pause(ctx, time.Until(next)) != nil {
				return
			}
			next = next.Add(c.interval)
		}
		c.form.fill()
		started := time.Now()
		status, err := c.exchange()
		if err != nil {
			c.errs[err.Error()]++
			return
		}
		if status != 201 {
			c.errs["status "+strconv.Itoa(status)]++
			continue
		}
		c.accepted.Add(1)
		if counting.Load() {
			c.took = append(c.took, time.Since(started))
		}
	}
}

func (c *client) exchange() (status int, err error) {
	if _, err := c.conn.Write(c.form.text); err != nil {
		return 0, err
	}
	return readAnswer(c.in)
}

var (
	nameLength   = []byte("content-length:")
	nameEncoding = []byte("transfer-encoding:")
)

// readAnswer reads as much of HTTP as the service's answers need.
func readAnswer(in *bufio.Reader) (status int, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, errors.New("not an answer of HTTP")
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, errors.New("not an answer of HTTP")
	}
	length, chunked := 0, false
	for {
		if line, err = in.ReadSlice('\n'); err != nil {
			return 0, err
		}
		line = bytes.TrimSpace(line)
		switch {
		case len(line) == 0:
			if chunked {
				return status, skipChunks(in)
			}
			_, err := in.Discard(length)
			return status, err
		case hasName(line, nameLength):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(line[len(nameLength):]))); err != nil {
				return 0, err
			}
		case hasName(line, nameEncoding):
			chunked = true
		}
	}
}

func hasName(line, name []byte) bool {
	return len(line) >= len(name) && bytes.EqualFold(line[:len(name)], name)
}

func skipChunks(in *bufio.Reader) error {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(string(bytes.TrimSpace(line)), 16, 64)
		if err != nil {
			return err
		}
		if _, err := in.Discard(int(size) + len("\r\n")); err != nil || size == 0 {
			return err
		}
	}
}
