package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"cardorder/internal/local"
)

// site is a folder with all that the services under measurement need: the keys,
// the configuration and D1's public key.
type site struct {
	dir        string
	root       string // of the repository
	keys       local.Keys
	token      string
	encryption *encryption
	server     string // the binary
	maxConns   int
}

// Where the example configuration is, and expects the keys.
const (
	example       = "deploy/example"
	keysDir       = example + "/keys"
	encryptionKey = keysDir + "/d1sim-encryption-key.json.pub.json"
)

// newSite builds the server and makes keys.
func newSite(ctx context.Context, dir, root string, maxConns int) (*site, error) {
	s := &site{dir: dir, root: root, server: filepath.Join(dir, "server"), maxConns: maxConns}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", s.server, "./cmd/server")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the server: %w\n%s", err, out)
	}
	var err error
	if s.keys, err = local.MakeKeys(filepath.Join(dir, keysDir)); err != nil {
		return nil, err
	}
	if s.token, err = s.keys.Read(local.FileToken); err != nil {
		return nil, err
	}
	s.encryption, err = newEncryption(filepath.Join(dir, encryptionKey))
	return s, err
}

// service is `server serve`, a process of its own.
type service struct {
	*process
	api, notifications, admin string // addresses
	token                     string
	stopD1                    func()
}

// startService runs the service for accepting: its D1 never answers an order, and
// one call may be open at once, so that sending rests with one claimed message.
// Neither pgbench nor the comparator sends anything either.
func (s *site) startService(ctx context.Context, name, databaseURL string) (*service, error) {
	d1, stopD1, err := silentD1(ctx)
	if err != nil {
		return nil, err
	}
	v, err := s.start(ctx, name, databaseURL, d1, nil, map[string]string{
		"concurrency: 16": "concurrency: 1", "callTimeout: 30s": "callTimeout: 2m",
	})
	if err != nil {
		stopD1()
		return nil, err
	}
	v.stopD1 = stopD1
	return v, nil
}

// start runs the service with the example configuration. What differs is where
// things are, and what is given in place of what stands there.
func (s *site) start(ctx context.Context, name, databaseURL, d1 string, env []string, replace map[string]string) (_ *service, err error) {
	text, err := os.ReadFile(filepath.Join(s.root, example, "server.yaml"))
	if err != nil {
		return nil, err
	}
	programs, err := os.ReadFile(filepath.Join(s.root, example, "programs.yaml"))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(s.dir, example, "programs.yaml"), programs, 0o600); err != nil {
		return nil, err
	}
	all := map[string]string{"maxConns: 16": "maxConns: " + strconv.Itoa(s.maxConns), "127.0.0.1:8180": d1}
	maps.Copy(all, replace)
	v := &service{token: s.token, stopD1: func() {}}
	addresses, err := freeAddresses(ctx, 3)
	if err != nil {
		return nil, err
	}
	v.api, v.notifications, v.admin = addresses[0], addresses[1], addresses[2]
	for i, inExample := range []string{"127.0.0.1:8080", "127.0.0.1:8081", "127.0.0.1:9090"} {
		all[inExample] = addresses[i]
	}
	var pairs []string
	for old, replacement := range all {
		if !strings.Contains(string(text), old) {
			return nil, fmt.Errorf("%s/server.yaml no longer says %q", example, old)
		}
		pairs = append(pairs, old, replacement)
	}
	config := filepath.Join(s.dir, name+".yaml")
	if err := os.WriteFile(config, []byte(strings.NewReplacer(pairs...).Replace(string(text))), 0o600); err != nil {
		return nil, err
	}
	env = append([]string{"CARDORDER_DATABASE_URL=" + databaseURL}, env...)
	v.process, err = startProcess(s.dir, name, env, s.server, "serve", "--config", config)
	if err != nil {
		return nil, err
	}
	if err := v.awaitReady(ctx, "http://"+v.api+"/readyz"); err != nil {
		v.process.stop()
		return nil, err
	}
	return v, nil
}

func (v *service) stop() {
	v.stopD1()
	v.process.stop()
}

// silentD1 gives tokens and leaves every other call without an answer.
func silentD1(ctx context.Context) (address string, stop func(), err error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	srv := &http.Server{
		ReadHeaderTimeout: 5 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, "/token") {
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{"access_token":"bench","token_type":"Bearer","expires_in":3600}`)
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}),
	}
	go func() { _ = srv.Serve(l) }()
	return l.Addr().String(), func() { _ = srv.Close() }, nil
}

// place places one order, and returns its ids.
func (v *service) place(ctx context.Context, f *form) (orderIDs, error) {
	ids := f.fill()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", v.api)
	if err != nil {
		return ids, err
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write(f.text); err != nil {
		return ids, err
	}
	answer := make([]byte, 64<<10)
	n, err := conn.Read(answer)
	if err != nil {
		return ids, err
	}
	if answer = answer[:n]; !bytes.HasPrefix(answer, []byte("HTTP/1.1 201 ")) {
		return ids, fmt.Errorf("an order was not accepted: %s", answer)
	}
	return ids, nil
}

// allocations so far, of the whole process.
type allocations struct{ objects, bytes float64 }

// allocations reads the runtime's statistics, which the heap profile ends with:
// /metrics would ask the database in passing.
func (v *service) allocations(ctx context.Context) (a allocations, err error) {
	if v.admin == "" {
		return a, nil
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.admin+"/debug/pprof/heap?debug=1", nil)
	if err != nil {
		return a, err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return a, err
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return a, err
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " = ")
		switch name {
		case "# Mallocs":
			a.objects, err = strconv.ParseFloat(value, 64)
		case "# TotalAlloc":
			a.bytes, err = strconv.ParseFloat(value, 64)
		}
		if err != nil {
			return a, err
		}
	}
	return a, nil
}

// batchAnswer is a batch as the service tells it.
type batchAnswer struct {
	Status string
	Rows   struct{ Read, Accepted, Replayed, Refused int }
}

func decodeBatch(r io.Reader) (b batchAnswer, err error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(text, &b); err != nil {
		return b, fmt.Errorf("not a batch: %s", text)
	}
	return b, nil
}
