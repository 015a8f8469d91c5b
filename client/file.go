package client

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// file is the body of an upload. It stops the attempt's patience while the
// caller's file is read: that is not the service standing still.
//
// The transport may close it while it reads, so closing touches nothing that
// reading does.
type file struct {
	source   io.ReadCloser
	content  io.Reader // source, compressed or not
	patience *patience
	closing  sync.Once
	closed   chan struct{}
	err      atomic.Pointer[error] // of reading source
}

func openFile(u *Upload, p *patience) (*file, error) {
	source, err := u.Open()
	if err != nil {
		return nil, fmt.Errorf("opening what is uploaded: %w", err)
	}
	f := &file{source: source, content: source, patience: p, closed: make(chan struct{})}
	if u.Gzip {
		f.content = newCompressed(source)
	}
	return f, nil
}

func (f *file) Read(p []byte) (int, error) {
	f.patience.stop()
	n, err := f.content.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && !f.isClosed() {
		f.err.CompareAndSwap(nil, &err)
	}
	f.patience.restart()
	return n, err
}

// Close closes the caller's file, once.
func (f *file) Close() (err error) {
	f.closing.Do(func() {
		close(f.closed)
		err = f.source.Close()
	})
	return err
}

func (f *file) isClosed() bool {
	select {
	case <-f.closed:
		return true
	default:
		return false
	}
}

// release returns when nobody reads the caller's file any more: the transport
// may go on for a moment after it has answered, and the file may be one that
// Open rewinds. Whoever wants to stop does not wait for that.
func (f *file) release(ctx context.Context, limit time.Duration) {
	if f == nil {
		return
	}
	late := time.NewTimer(limit)
	defer late.Stop()
	select {
	case <-f.closed:
	case <-ctx.Done():
	case <-late.C:
	}
	_ = f.Close() // it was only read
}

// failed returns why the file could not be read, if so.
func (f *file) failed() error {
	if f == nil {
		return nil
	}
	if err := f.err.Load(); err != nil {
		return *err
	}
	return nil
}

// compressed reads its source and gives it compressed, without a goroutine that
// somebody would have to end.
type compressed struct {
	source io.Reader
	chunk  []byte
	out    bytes.Buffer
	gzip   *gzip.Writer // nil after the end
}

func newCompressed(source io.Reader) *compressed {
	c := &compressed{source: source, chunk: make([]byte, 32<<10)}
	c.gzip = gzip.NewWriter(&c.out)
	return c
}

func (c *compressed) Read(p []byte) (int, error) {
	for c.out.Len() == 0 && c.gzip != nil {
		n, err := c.source.Read(c.chunk)
		_, _ = c.gzip.Write(c.chunk[:n]) // a bytes.Buffer takes everything
		switch {
		case errors.Is(err, io.EOF):
			_ = c.gzip.Close()
			c.gzip = nil
		case err != nil:
			return 0, err
		}
	}
	return c.out.Read(p)
}
