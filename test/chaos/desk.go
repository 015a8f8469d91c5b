package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"
)

// desk is the people who look after the service: they pause its lane and ask D1 where
// orders stand.
type desk struct {
	cluster *cluster
	http    *http.Client
}

func (d *desk) pause(ctx context.Context) error {
	return d.insist(ctx, "/lanes/d1/pause", `{"reason":"chaos"}`, http.StatusOK)
}

func (d *desk) resume(ctx context.Context) error {
	return d.insist(ctx, "/lanes/d1/resume", `{}`, http.StatusOK)
}

func (d *desk) refresh(ctx context.Context, orderID string) error {
	return d.insist(ctx, "/orders/"+orderID+"/refresh", ``, http.StatusAccepted)
}

// insist posts to random replicas until one of them says what is wanted, or no.
func (d *desk) insist(ctx context.Context, path, body string, want int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		status, answer, err := d.post(ctx, path, body)
		switch {
		case err == nil && status == want:
			return nil
		case err == nil && status < 500 && status != http.StatusTooManyRequests:
			return fmt.Errorf("POST %s: %d %s", path, status, answer)
		}
		if !sleep(ctx, 50*time.Millisecond+rand.N(200*time.Millisecond)) {
			return fmt.Errorf("POST %s: %w", path, ctx.Err())
		}
	}
}

func (d *desk) post(ctx context.Context, path, body string) (status int, answer []byte, err error) {
	r := d.cluster.replicas[rand.N(len(d.cluster.replicas))]
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.toAPI.Addr()+"/v1/issuers/"+issuer+path, bytes.NewReader([]byte(body)))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(d.cluster.token))
	req.Header.Set("Content-Type", "application/json")
	res, err := d.http.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = res.Body.Close() }()
	answer, err = io.ReadAll(io.LimitReader(res.Body, 4096))
	return res.StatusCode, answer, err
}
