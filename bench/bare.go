package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// bareClient posts what the service posts, from memory: the ceiling for sending.
// It is net/http as anybody would use it.
type bareClient struct {
	client *http.Client
	stub   *d1Stub
	sample stubSample
}

func newBareClient(stub *d1Stub, sample stubSample, concurrency int) *bareClient {
	return &bareClient{client: newHTTPClient(concurrency), stub: stub, sample: sample}
}

// newHTTPClient keeps as many connections as calls are open at once.
func newHTTPClient(concurrency int) *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: concurrency}}
}

// run posts n orders, with so many calls open at once.
func (c *bareClient) run(ctx context.Context, n, concurrency int) error {
	defer c.client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for range concurrency {
		wg.Go(func() {
			// The sample with other ids.
			body := bytes.Clone(c.sample.Body)
			request := bytes.Index(body, []byte(`"issuerRequestId":"`)) + len(`"issuerRequestId":"`)
			prefix, suffix, _ := strings.Cut("http://"+c.stub.address+c.sample.Path, cardOf(c.sample.Path))
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				ids := newOrderIDs()
				copy(body[request:], ids.request[:])
				if err := c.post(ctx, prefix+string(ids.card[:])+suffix, body); err != nil {
					cancel(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return fmt.Errorf("the bare client: %w", context.Cause(ctx))
	}
	return nil
}

func (c *bareClient) post(ctx context.Context, url string, body []byte) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	for _, name := range []string{"Authorization", "Accept", "Content-Type", "User-Agent", "X-Correlation-Id"} {
		if value := c.sample.Header.Get(name); value != "" {
			r.Header.Set(name, value)
		}
	}
	res, err := c.client.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		return err
	}
	if res.StatusCode != http.StatusAccepted {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

// measureBare measures the bare client against the stub.
func (b *bench) measureBare(ctx context.Context, d dispatch) (*result, error) {
	if b.sample.Body == nil {
		return nil, fmt.Errorf("%s: no order was sent before whose body could be posted", d.name)
	}
	if err := b.stub.control(ctx, stubControl{Reset: true, Limit: int64(d.orders), Delay: d.delay}); err != nil {
		return nil, err
	}
	client := newBareClient(b.stub, b.sample, d.concurrency)
	var posted atomic.Int64
	from, err := b.snapshotSending(ctx, nil, &posted)
	if err != nil {
		return nil, err
	}
	started := time.Now()
	if err := client.run(ctx, d.orders, d.concurrency); err != nil {
		return nil, err
	}
	took := time.Since(started)
	posted.Store(int64(d.orders))
	to, err := b.snapshotSending(ctx, nil, &posted)
	if err != nil {
		return nil, err
	}
	s, err := b.stub.state(ctx)
	if err != nil {
		return nil, err
	}
	if s.Answered != int64(d.orders) || s.Repeats > 0 {
		return nil, fmt.Errorf("%s posted %d orders, and D1 got %+v", d.name, d.orders, s)
	}
	return &result{name: d.name, clients: d.concurrency, orders: d.orders, rate: float64(d.orders) / took.Seconds(), cost: from.perOrder(to)}, nil
}
