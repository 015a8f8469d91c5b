package d1client

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestProductionStatus(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status     int
		body       string
		finding    Finding
		reason     Reason
		operations int
		skipped    int
	}{
		"one":                {200, `{"operations":[{"operationId":"op-1","operation":"PRODUCE"}],"more":1}`, Found, ReasonFound, 1, 0},
		"none":               {200, `{"operations":[]}`, Found, ReasonFound, 0, 0},
		"some unreadable":    {200, `{"operations":[7,{"operationId":"op-1"},"x",null,[],{}]}`, Found, ReasonFound, 2, 4},
		"no list":            {200, `{}`, LookupFailed, ReasonUnreadable, 0, 0},
		"null list":          {200, `{"operations":null}`, LookupFailed, ReasonUnreadable, 0, 0},
		"list of wrong type": {200, `{"operations":{}}`, LookupFailed, ReasonUnreadable, 0, 0},
		"html":               {200, `<html>`, LookupFailed, ReasonUnreadable, 0, 0},
		"no content":         {204, ``, LookupFailed, ReasonUnreadable, 0, 0},
		"half":               {200, `{"operations":[{"operationId":"op-1"}`, LookupFailed, ReasonUnreadable, 0, 0},
		"over 1 MiB":         {200, `{"operations":[]` + strings.Repeat(" ", 1<<20) + `}`, LookupFailed, ReasonUnreadable, 0, 0},
		"under 1 MiB":        {200, `{"operations":[]` + strings.Repeat(" ", 1<<20-100) + `}`, Found, ReasonFound, 0, 0},
		"unknown card":       {404, `{"errorCode":"NOT_FOUND"}`, CardNotFound, ReasonNotFound, 0, 0},
		"unknown path":       {404, `<html>`, CardNotFound, ReasonNotFound, 0, 0},
		"bad request":        {400, ``, LookupFailed, ReasonRefused, 0, 0},
		"unauthorized":       {401, ``, LookupFailed, ReasonUnauthorized, 0, 0},
		"forbidden":          {403, ``, LookupFailed, ReasonRefused, 0, 0},
		"rate limited":       {429, ``, LookupFailed, ReasonRateLimited, 0, 0},
		"redirect":           {302, ``, LookupFailed, ReasonRedirect, 0, 0},
		"unavailable":        {503, ``, LookupFailed, ReasonUnavailable, 0, 0},
		"server error":       {500, `{"operations":[]}`, LookupFailed, ReasonServerError, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got *http.Request
			d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
				got = r
				w.WriteHeader(tc.status)
				_, _ = io.WriteString(w, tc.body)
			})
			s := newClient(t, d1.config()).ProductionStatus(callContext(t), testCard, "corr-1")
			if s.Finding != tc.finding || s.Reason != tc.reason || len(s.Operations) != tc.operations || s.Skipped != tc.skipped ||
				s.Status != tc.status || s.CorrelationID != "corr-1" || s.Duration <= 0 {
				t.Errorf("%+v", s)
			}
			if (s.Err != nil) != (s.Reason == ReasonUnreadable) {
				t.Errorf("err %v", s.Err)
			}
			if got.Method != http.MethodGet || got.RequestURI != "/banking/v1/issuers/issuer0001/physicalCards/card-1/productionStatus" ||
				got.Header.Get("Content-Type") != "" || got.Header.Get("X-Correlation-Id") != "corr-1" || got.ContentLength != 0 {
				t.Errorf("%s %s %v", got.Method, got.RequestURI, got.Header)
			}
		})
	}
}

func TestProductionStatusLowercase(t *testing.T) {
	t.Parallel()
	var uri string
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		uri = r.RequestURI
		w.WriteHeader(404)
	})
	cfg := d1.config()
	cfg.PathStyle = PathLowercase
	newClient(t, cfg).ProductionStatus(callContext(t), testCard, "")
	if uri != "/banking/v1/issuers/issuer0001/physicalcards/card-1/productionstatus" {
		t.Error(uri)
	}
}

func TestProductionStatusRenewsItsToken(t *testing.T) {
	t.Parallel()
	d1 := newFakeD1(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer token-1" {
			w.WriteHeader(401)
			return
		}
		_, _ = io.WriteString(w, `{"operations":[]}`)
	})
	if s := newClient(t, d1.config()).ProductionStatus(callContext(t), testCard, ""); s.Finding != Found {
		t.Errorf("%+v", s)
	}
}
