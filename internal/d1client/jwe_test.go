package d1client

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

var jweNow = time.Date(2025, 3, 4, 5, 6, 7, 0, time.UTC)

func encryptWith(t testing.TB, keys ...EncryptionKey) *Encrypter {
	t.Helper()
	e, err := NewEncrypter(keys...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEncryptRoundTrip(t *testing.T) {
	t.Parallel()
	private := newKey(t)
	e := encryptWith(t, EncryptionKey{KeyID: "k1", Public: &private.PublicKey})
	plain := `{"pan":"4111111111111111","exp":"3012"}`
	compact, err := e.Encrypt(jweNow, []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Check(jweNow, compact); err != nil {
		t.Error(err)
	}
	sealed, err := jose.ParseEncryptedCompact(compact, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A256GCM})
	if err != nil {
		t.Fatal(err)
	}
	got, err := sealed.Decrypt(private)
	if err != nil || string(got) != plain || sealed.Header.KeyID != "k1" {
		t.Errorf("%q, kid %q, %v", got, sealed.Header.KeyID, err)
	}
	if again, _ := e.Encrypt(jweNow, []byte(plain)); again == compact {
		t.Error("twice the same")
	}
	if _, err := e.Encrypt(jweNow, make([]byte, 8000)); err == nil {
		t.Error("longer than D1 takes")
	}
}

func TestEncryptTakesTheKeyThatIsValidLongest(t *testing.T) {
	t.Parallel()
	public := &newKey(t).PublicKey
	at := func(id string, d time.Duration) EncryptionKey {
		return EncryptionKey{KeyID: id, Public: public, NotAfter: jweNow.Add(d)}
	}
	endless := EncryptionKey{KeyID: "endless", Public: public}
	for _, tc := range []struct {
		keys []EncryptionKey
		want string
	}{
		{[]EncryptionKey{at("old", time.Hour), at("new", 2*time.Hour)}, "new"},
		{[]EncryptionKey{at("new", 2*time.Hour), at("old", time.Hour)}, "new"},
		{[]EncryptionKey{at("past", -time.Hour), at("last", 0)}, "last"},
		{[]EncryptionKey{at("new", time.Hour), endless, at("newer", 9*time.Hour)}, "endless"},
		{[]EncryptionKey{at("b", time.Hour), at("a", time.Hour)}, "a"},
		{[]EncryptionKey{at("past", -1)}, ""},
	} {
		for range 5 {
			compact, err := encryptWith(t, tc.keys...).Encrypt(jweNow, []byte("{}"))
			if tc.want == "" {
				if err == nil {
					t.Error("encrypted with an expired key")
				}
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if kid := jweHeader(t, compact)["kid"]; kid != tc.want {
				t.Errorf("key %v, want %v", kid, tc.want)
			}
		}
	}
}

func TestNewEncrypterRefuses(t *testing.T) {
	t.Parallel()
	public := &newKey(t).PublicKey
	for name, keys := range map[string][]EncryptionKey{
		"none": nil, "no id": {{Public: public}}, "no key": {{KeyID: "a"}},
		"twice": {{KeyID: "a", Public: public}, {KeyID: "a", Public: public}},
	} {
		if _, err := NewEncrypter(keys...); err == nil {
			t.Error(name)
		}
	}
}

func jweHeader(t testing.TB, compact string) map[string]any {
	t.Helper()
	first, _, _ := strings.Cut(compact, ".")
	raw, err := base64.RawURLEncoding.DecodeString(first)
	if err != nil {
		t.Fatal(err)
	}
	var h map[string]any
	if err := json.Unmarshal(raw, &h); err != nil {
		t.Fatal(err)
	}
	return h
}

func TestCheck(t *testing.T) {
	t.Parallel()
	public := &newKey(t).PublicKey
	e := encryptWith(t,
		EncryptionKey{KeyID: "k1", Public: public, NotAfter: jweNow.Add(time.Hour)},
		EncryptionKey{KeyID: "old", Public: public, NotAfter: jweNow.Add(-time.Hour)})
	good, err := e.Encrypt(jweNow, []byte("{}"))
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	header := func(change func(map[string]any)) string {
		h := jweHeader(t, good)
		change(h)
		raw, _ := json.Marshal(h)
		_, rest, _ := strings.Cut(good, ".")
		return b64(raw) + "." + rest
	}
	set := func(name string, v any) string { return header(func(h map[string]any) { h[name] = v }) }
	epk := func(name string, v any) string {
		return header(func(h map[string]any) { h["epk"].(map[string]any)[name] = v })
	}
	raw := func(change func(string) string) string {
		first, rest, _ := strings.Cut(good, ".")
		h, _ := base64.RawURLEncoding.DecodeString(first)
		return b64([]byte(change(string(h)))) + "." + rest
	}
	replace := func(old, changed string) string {
		return raw(func(h string) string {
			if !strings.Contains(h, old) {
				t.Fatalf("no %s in the header", old)
			}
			return strings.Replace(h, old, changed, 1)
		})
	}
	part := func(i int, s string) string {
		p := strings.Split(good, ".")
		p[i] = s
		return strings.Join(p, ".")
	}
	if err := e.Check(jweNow, set("apu", "x")); err != nil {
		t.Errorf("a header we need not know: %v", err)
	}
	if e.Check(jweNow.Add(2*time.Hour), good) == nil {
		t.Error("expired key")
	}
	if err := e.Check(jweNow.Add(time.Hour), good); err != nil {
		t.Errorf("the key's last moment: %v", err)
	}
	jsonForm, err := json.Marshal(map[string]string{
		"protected": strings.Split(good, ".")[0], "iv": strings.Split(good, ".")[2],
		"ciphertext": strings.Split(good, ".")[3], "tag": strings.Split(good, ".")[4],
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, compact := range map[string]string{
		"empty": "", "dots": "....", "four parts": good[:strings.LastIndex(good, ".")], "six parts": good + ".",
		"too long":                     part(3, strings.Repeat("A", 8192)),
		"header":                       part(0, b64([]byte(`[]`))),
		"header null":                  part(0, b64([]byte(`null`))),
		"not base64":                   part(3, "!!!!"),
		"padded":                       part(3, "QUI="),
		"line break":                   part(3, "QU\nJD"),
		"alg":                          set("alg", "ECDH-ES+A256KW"),
		"alg none":                     set("alg", nil),
		"enc":                          set("enc", "A128GCM"),
		"kid unknown":                  set("kid", "other"),
		"kid missing":                  set("kid", nil),
		"kid a number":                 set("kid", 1),
		"kid expired":                  set("kid", "old"),
		"zip":                          set("zip", "DEF"),
		"crit":                         set("crit", []string{"x"}),
		"zip null":                     set("zip", nil),
		"crit null":                    set("crit", nil),
		"alg in capitals, named twice": replace(`"alg":"ECDH-ES"`, `"ALG":"ECDH-ES"`),
		"kid twice":                    replace(`"kid":"k1"`, `"kid":"k1","kid":"k1"`),
		"kid twice, escaped":           replace(`"kid":"k1"`, `"kid":"k1","k\u0069d":"old"`),
		"epk twice":                    replace(`"kid":"k1"`, `"kid":"k1","epk":{}`),
		"enc a list":                   set("enc", []string{"A256GCM"}),
		"header not UTF-8":             replace(`"kid":"k1"`, "\"kid\":\"k1\",\"x\":\"\xff\""),
		"header with more after":       raw(func(h string) string { return h + "{}" }),
		"header cut":                   raw(func(h string) string { return h[:len(h)-1] }),
		"header nested":                raw(func(h string) string { return strings.Repeat(`{"a":`, 1000) }),
		"JSON form":                    string(jsonForm),
		"JWS":                          b64([]byte(`{"alg":"ES256"}`)) + ".e30." + b64(make([]byte, 64)),
		"white space":                  " " + good,
		"line end":                     good + "\n",
		"bits left over":               part(4, strings.Repeat("A", 21)+"B"),
		"one character":                part(4, strings.Repeat("A", 21)),
		"standard base64":              part(3, "ab+/"),
		"epk private":                  epk("d", b64(make([]byte, 32))),
		"epk private, empty":           epk("d", ""),
		"epk padded":                   epk("x", b64(make([]byte, 32))+"="),
		"epk of numbers":               epk("x", 1),
		"epk long":                     epk("x", b64(make([]byte, 33))),
		"epk with line breaks":         epk("x", "\n"+b64(make([]byte, 32))),
		"no epk":                       set("epk", nil),
		"epk a string":                 set("epk", "x"),
		"epk curve":                    epk("crv", "P-384"),
		"epk type":                     epk("kty", "OKP"),
		"epk off":                      epk("x", b64(make([]byte, 32))),
		"epk short":                    epk("y", b64(make([]byte, 31))),
		"epk infinity": header(func(h map[string]any) {
			h["epk"].(map[string]any)["x"], h["epk"].(map[string]any)["y"] = b64(make([]byte, 32)), b64(make([]byte, 32))
		}),
		"encrypted key": part(1, "QUJD"), "iv": part(2, "QUJD"), "no ciphertext": part(3, ""), "tag": part(4, "QUJD"),
	} {
		err := e.Check(jweNow, compact)
		if err == nil {
			t.Errorf("%s passes", name)
		} else if len(compact) > 8 && strings.Contains(err.Error(), compact[len(compact)-8:]) {
			t.Errorf("%s: error quotes the data: %v", name, err)
		}
	}
}

func TestParsePublicJWK(t *testing.T) {
	t.Parallel()
	private := newKey(t)
	marshal := func(k jose.JSONWebKey) []byte {
		raw, err := k.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := marshal(jose.JSONWebKey{Key: &private.PublicKey, KeyID: "k1", Use: "enc", Algorithm: "ECDH-ES"})
	k, err := ParsePublicJWK(good)
	if err != nil || k.KeyID != "k1" || !k.Public.Equal(&private.PublicKey) || !k.NotAfter.IsZero() {
		t.Errorf("%+v %v", k, err)
	}
	for name, raw := range map[string][]byte{
		"private": marshal(jose.JSONWebKey{Key: private, KeyID: "k1"}),
		"no kid":  marshal(jose.JSONWebKey{Key: &private.PublicKey}),
		"signing": marshal(jose.JSONWebKey{Key: &private.PublicKey, KeyID: "k1", Use: "sig"}),
		"alg":     marshal(jose.JSONWebKey{Key: &private.PublicKey, KeyID: "k1", Algorithm: "ECDH-ES+A256KW"}),
		"octets":  marshal(jose.JSONWebKey{Key: []byte(secretMark), KeyID: "k1"}),
		"garbage": []byte(secretMark),
		"off":     []byte(`{"kty":"EC","crv":"P-256","kid":"k","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}`),
	} {
		_, err := ParsePublicJWK(raw)
		if err == nil {
			t.Errorf("%s is taken", name)
		} else if strings.Contains(err.Error(), secretMark) {
			t.Errorf("%s: error quotes the key", name)
		}
	}
}

func FuzzCheck(f *testing.F) {
	e := encryptWith(f, EncryptionKey{KeyID: "k1", Public: &signingKey().PublicKey})
	good, err := e.Encrypt(jweNow, []byte(`{"pan":"4111111111111111"}`))
	if err != nil {
		f.Fatal(err)
	}
	header, rest, _ := strings.Cut(good, ".")
	plain, err := base64.RawURLEncoding.DecodeString(header)
	if err != nil {
		f.Fatal(err)
	}
	for _, change := range []string{`"d":"AA","crv"`, `"crv":"P-384","crv"`, "\"\xff\":1,\"crv\"", `"crv":[[[[{"a":1e999}]]]],"y"`} {
		f.Add(base64.RawURLEncoding.EncodeToString([]byte(strings.Replace(string(plain), `"crv"`, change, 1))) + "." + rest)
	}
	for _, seed := range []string{good, "", "....", "e30....", good + ".", strings.Replace(good, ".", "..", 1), strings.Repeat("A", 9000)} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, compact string) {
		err := e.Check(jweNow, compact)
		switch {
		case err == nil:
			// What passes must be a JWE to others too.
			if _, err := jose.ParseEncryptedCompact(compact, []jose.KeyAlgorithm{jose.ECDH_ES}, []jose.ContentEncryption{jose.A256GCM}); err != nil {
				t.Errorf("passes, but: %v", err)
			}
		case len(compact) > 40 && strings.Contains(err.Error(), compact):
			t.Error("the error quotes the data")
		}
	})
}

// BenchmarkCheck looks at a JWE of a usual length, as every order does.
func BenchmarkCheck(b *testing.B) {
	e := encryptWith(b, EncryptionKey{KeyID: "d1-2026-01", Public: &signingKey().PublicKey})
	compact, err := e.Encrypt(jweNow, make([]byte, 300))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := e.Check(jweNow, compact); err != nil {
			b.Fatal(err)
		}
	}
}
