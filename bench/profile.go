package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

// profileServer writes profiles of a run of its own: profiling costs some time.
func (b *bench) profileServer(ctx context.Context) error {
	if err := os.MkdirAll(b.profile, 0o750); err != nil {
		return err
	}
	var profiling sync.WaitGroup
	var failed error
	seconds := max(1, int(b.duration.Seconds()))
	profiling.Go(func() {
		failed = errors.Join(
			b.fetchProfile(ctx, fmt.Sprintf("profile?seconds=%d", seconds), "server.cpu.pprof"),
			b.fetchProfile(ctx, "allocs", "server.allocs.pprof"))
	})
	_, err := b.measureAccept(ctx, "accept, profiled", b.server, b.clients[0], b.duration)
	profiling.Wait()
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	b.printf("profiles of the server are in %s: go tool pprof -top %s\n", b.profile, filepath.Join(b.profile, "server.cpu.pprof"))
	return nil
}

func (b *bench) fetchProfile(ctx context.Context, what, name string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.server.admin+"/debug/pprof/"+what, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	file, err := os.Create(filepath.Join(b.profile, name))
	if err != nil {
		return err
	}
	_, err = io.Copy(file, res.Body)
	return errors.Join(err, file.Close())
}
