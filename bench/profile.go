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

// profileServer writes profiles of runs of their own: profiling costs some time.
func (b *bench) profileServer(ctx context.Context) error {
	if err := os.MkdirAll(b.profile, 0o750); err != nil {
		return err
	}
	profile := func(name string, run func() error) error {
		var profiling sync.WaitGroup
		var failed error
		profiling.Go(func() {
			seconds := max(1, int(b.duration.Seconds()))
			failed = errors.Join(
				b.fetchProfile(ctx, b.server, fmt.Sprintf("profile?seconds=%d", seconds), name+".cpu.pprof"),
				b.fetchProfile(ctx, b.server, "allocs", name+".allocs.pprof"))
		})
		err := run()
		profiling.Wait()
		return errors.Join(err, failed)
	}
	if b.wants("accept") {
		err := profile("accept", func() error {
			_, err := b.measureAccept(ctx, "accept", b.server, b.clients[0], b.duration)
			return err
		})
		if err != nil {
			return err
		}
	}
	if b.wants("batch") && b.batch > 0 {
		err := profile("batch", func() error {
			_, _, err := b.measureBatch(ctx, b.server, b.batch, false)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// profileSending writes profiles of a run of sending.
func (b *bench) profileSending(ctx context.Context) error {
	var profiling sync.WaitGroup
	var failed error
	b.onRelease = func(svc *service) {
		profiling.Go(func() {
			seconds := max(1, int(b.duration.Seconds()))
			failed = errors.Join(
				b.fetchProfile(ctx, svc, fmt.Sprintf("profile?seconds=%d", seconds), "dispatch.cpu.pprof"),
				b.fetchProfile(ctx, svc, "allocs", "dispatch.allocs.pprof"))
		})
	}
	b.beforeEnd = profiling.Wait
	defer func() { b.onRelease, b.beforeEnd = nil, nil }()
	_, err := b.measureDispatch(ctx, dispatch{nameDispatch, b.dispatch, defaultConcurrency, 0})
	return errors.Join(err, failed)
}

func (b *bench) fetchProfile(ctx context.Context, svc *service, what, name string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+svc.admin+"/debug/pprof/"+what, nil)
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
