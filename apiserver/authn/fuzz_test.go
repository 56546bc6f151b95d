package authn

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/base64"
	"math/big"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/keelson/keelson/apiserver/readertest"
)

// testKey is a key of this test: fixed, so that seeds stay valid.
func testKey(secret int64) *ecdsa.PrivateKey {
	k := &ecdsa.PrivateKey{D: big.NewInt(secret)}
	k.Curve = elliptic.P256()
	k.X, k.Y = k.Curve.ScalarBaseMult(k.D.Bytes()) //nolint:staticcheck // a fixed key is wanted
	return k
}

func fuzzAccounts(t interface{ Fatal(...any) }) (s *ServiceAccounts, tokens []string) {
	key := testKey(1234567)
	pub := PublicKey{Key: &key.PublicKey}
	var err error
	if pub.ID, err = keyID(&key.PublicKey); err != nil {
		t.Fatal(err)
	}
	// The fuzzer's processes each make them anew, and must know those of the others.
	uuid.SetRand(rand.NewChaCha8([32]byte{1}))
	defer uuid.SetRand(nil)
	now := time.Unix(1_800_000_000, 0)
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "sa", UID: "u1"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", UID: "u2"}}
	boot := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "bootstrap-token-abcdef"}, Type: corev1.SecretTypeBootstrapToken,
		Data: map[string][]byte{"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true")}}
	s = &ServiceAccounts{Issuer: "https://issuer", Keys: []PublicKey{pub}, Signer: key, Read: readertest.New(sa, pod, boot), Now: func() time.Time { return now }}
	add := func(signer *ServiceAccounts, aud []string, life time.Duration, pod *Bound) {
		token, _, err := signer.Issue(sa, aud, life, 0, pod, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, token)
	}
	add(s, []string{"https://issuer"}, time.Hour, nil)
	add(s, []string{"https://issuer"}, time.Hour, &Bound{Name: "p", UID: "u2"})
	other := &ServiceAccounts{Issuer: s.Issuer, Signer: testKey(7654321), Read: s.Read, Now: s.Now}
	add(s, []string{"https://issuer"}, -time.Hour, nil)                          // over
	add(s, []string{"elsewhere"}, time.Hour, nil)                                // for others
	add(s, []string{"https://issuer"}, time.Hour, &Bound{Name: "p", UID: "old"}) // of a pod that is gone
	add(other, []string{"https://issuer"}, time.Hour, nil)                       // signed by another
	return s, tokens
}

// No header makes anybody more than the tokens that were issued say, and none breaks the server.
func FuzzBearer(f *testing.F) {
	s, tokens := fuzzAccounts(f)
	for _, token := range tokens {
		f.Add("Bearer "+token, "", "")
		f.Add("", "websocket", "v4.channel.k8s.io, "+websocketTokenPrefix+base64.RawURLEncoding.EncodeToString([]byte(token)))
		parts := strings.Split(token, ".")
		none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`))
		f.Add("Bearer "+none+"."+parts[1]+".", "", "")
		mac := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"HS256"}`))
		f.Add("bearer "+mac+"."+parts[1]+"."+parts[2], "", "")
	}
	f.Add("Bearer abcdef.0123456789abcdef", "", "")
	f.Add("Basic YTpi", "", "")
	boot := BootstrapTokens{Read: s.Read, Now: s.Now}
	// Only these are good: what comes from another signed text is a forgery.
	signed := map[string]bool{tokens[0][:strings.LastIndexByte(tokens[0], '.')]: true, tokens[1][:strings.LastIndexByte(tokens[1], '.')]: true}
	f.Fuzz(func(t *testing.T, authorization, upgrade, protocols string) {
		r := &http.Request{Header: http.Header{"Authorization": {authorization}, "Upgrade": {upgrade}, "Sec-Websocket-Protocol": {protocols}}}
		token, found := Bearer(r)
		u, ok, err := s.Authenticate(r)
		if ok && err == nil {
			i := strings.LastIndexByte(token, '.')
			if !found || i < 0 || !signed[token[:i]] || u.Name != "system:serviceaccount:ns:sa" || u.UID != "u1" {
				t.Fatalf("%q is %+v", token, u)
			}
		} else if u != nil {
			t.Fatalf("%q is refused (%v) and yet %+v", token, err, u)
		}
		if u, ok, err := boot.Authenticate(r); ok && (err != nil || token != "abcdef.0123456789abcdef" || u.Name != "system:bootstrap:abcdef") {
			t.Fatalf("%q is %+v, %v", token, u, err)
		}
	})
}
