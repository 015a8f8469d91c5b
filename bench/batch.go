package main

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

// errNoBatches means that the service does not know the call.
var errNoBatches = errors.New("this service takes no batches yet")

// upload is a batch that was uploaded.
type upload struct {
	orders int
	took   time.Duration
	peak   int64 // of the service's memory, in bytes
}

// uploadBatch sends one batch of n orders. A compressed one is written to a file
// beforehand, so that compressing takes nothing from what is measured; the lines
// of a plain one are made while they are sent, which costs next to nothing.
func (v *service) uploadBatch(ctx context.Context, dir string, e *encryption, n int, compressed bool, begin, end func() error) (_ *upload, err error) {
	var body io.Reader
	length := int64(-1)
	if compressed {
		file, err := writeBatch(filepath.Join(dir, "batch.ndjson.gz"), e, n)
		if err != nil {
			return nil, err
		}
		defer func() {
			_ = file.Close()
			_ = os.Remove(file.Name())
		}()
		info, err := file.Stat()
		if err != nil {
			return nil, err
		}
		body, length = file, info.Size()
	} else {
		reader, writer := io.Pipe()
		defer func() { _ = reader.Close() }()
		go func() {
			buffered := bufio.NewWriterSize(writer, 64<<10)
			err := writeLines(buffered, e, n)
			_ = writer.CloseWithError(errors.Join(err, buffered.Flush()))
		}()
		body = reader
	}
	key := newOrderIDs().key
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+v.api+"/v1/issuers/"+issuerID+"/order-batches", body)
	if err != nil {
		return nil, err
	}
	r.ContentLength = length
	r.Header.Set("Authorization", "Bearer "+v.token)
	r.Header.Set("Content-Type", "application/x-ndjson")
	r.Header.Set("Idempotency-Key", string(key[:]))
	if compressed {
		r.Header.Set("Content-Encoding", "gzip")
	}
	if err := errors.Join(v.resetPeak(), begin()); err != nil {
		return nil, err
	}
	started := time.Now()
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusNotFound || res.StatusCode == http.StatusMethodNotAllowed {
		return nil, errNoBatches
	}
	b, err := decodeBatch(res.Body)
	took := time.Since(started)
	if err := errors.Join(err, end()); err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusCreated || b.Rows.Accepted != n {
		return nil, fmt.Errorf("a batch of %d: status %d, %+v", n, res.StatusCode, b)
	}
	peak, err := v.peakRSS()
	return &upload{orders: n, took: took, peak: peak}, err
}

func writeLines(w io.Writer, e *encryption, n int) error {
	line := lineForm(e)
	for range n {
		line.fill()
		if _, err := w.Write(line.text); err != nil {
			return err
		}
	}
	return nil
}

// writeBatch writes a compressed batch and returns it open at its beginning.
func writeBatch(path string, e *encryption, n int) (_ *os.File, err error) {
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = file.Close()
		}
	}()
	buffered := bufio.NewWriterSize(file, 1<<20)
	zip, err := gzip.NewWriterLevel(buffered, gzip.BestSpeed)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(writeLines(zip, e, n), zip.Close(), buffered.Flush()); err != nil {
		return nil, err
	}
	_, err = file.Seek(0, io.SeekStart)
	return file, err
}
