// Command gospiffe-fetch asks a SPIFFE Workload API for a JWT-SVID and for the JWT bundles with
// go-spiffe, verifies the one against the others, and prints what the JWT-SVID says as one line
// of JSON. It is the second opinion on the Workload API server of the lab: a client that shares
// no code with this project.
//
// The address is $SPIFFE_ENDPOINT_SOCKET. The token itself is a secret and is never printed.
// Exit codes: 0 fetched and verified, 1 not, 2 wrong usage.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

// report is what is printed: claims and header of the JWT-SVID, and the keys that were offered.
type report struct {
	Sub string   `json:"sub"`
	Aud []string `json:"aud"`
	Exp int64    `json:"exp"`
	Iss string   `json:"iss,omitempty"`
	Kid string   `json:"kid"`
	Alg string   `json:"alg"`
	Typ string   `json:"typ,omitempty"`
	// BundleKids are the key ids of the trust domain's bundle.
	BundleKids []string `json:"bundle_kids"`
}

func main() {
	id := flag.String("spiffe-id", "", "the SPIFFE ID to ask for")
	audience := flag.String("audience", "", "the audience to ask for")
	timeout := flag.Duration("timeout", 10*time.Second, "how long both calls may take")
	flag.Parse()
	if *id == "" || *audience == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	subject, err := spiffeid.FromString(*id)
	if err != nil {
		fmt.Fprintln(os.Stderr, "gospiffe-fetch:", err)
		os.Exit(2)
	}

	ctx, cancel := context.WithTimeout(context.Background(), *timeout)
	defer cancel()
	found, err := fetch(ctx, subject, *audience)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(found)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gospiffe-fetch:", err)
		os.Exit(1)
	}
}

func fetch(ctx context.Context, subject spiffeid.ID, audience string) (*report, error) {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("connecting: %w", err)
	}
	defer client.Close()

	fetched, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Subject: subject, Audience: audience})
	if err != nil {
		return nil, fmt.Errorf("FetchJWTSVID: %s: %w", status.Code(err), err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return nil, fmt.Errorf("FetchJWTBundles: %s: %w", status.Code(err), err)
	}
	// FetchJWTSVID reads the token without its signature; this is where it is proven.
	svid, err := jwtsvid.ParseAndValidate(fetched.Marshal(), bundles, []string{audience})
	if err != nil {
		return nil, fmt.Errorf("the JWT-SVID does not verify against the bundle: %w", err)
	}
	if svid.ID != subject {
		return nil, fmt.Errorf("asked for %s, was given %s", subject, svid.ID)
	}
	return describe(svid, bundles)
}

// describe reads what go-spiffe does not expose from the header of a verified JWT-SVID.
func describe(svid *jwtsvid.SVID, bundles *jwtbundle.Set) (*report, error) {
	encoded, _, ok := strings.Cut(svid.Marshal(), ".")
	if !ok {
		return nil, errors.New("the JWT-SVID has no header")
	}
	decoded, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("the JWT-SVID's header is not base64url: %w", err)
	}
	var header struct{ Alg, Kid, Typ string }
	if err := json.Unmarshal(decoded, &header); err != nil {
		return nil, fmt.Errorf("the JWT-SVID's header is not JSON: %w", err)
	}
	bundle, err := bundles.GetJWTBundleForTrustDomain(svid.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	found := &report{
		Sub: svid.ID.String(),
		Aud: svid.Audience,
		Exp: svid.Expiry.Unix(),
		Kid: header.Kid,
		Alg: header.Alg,
		Typ: header.Typ,
	}
	found.Iss, _ = svid.Claims["iss"].(string)
	for kid := range bundle.JWTAuthorities() {
		found.BundleKids = append(found.BundleKids, kid)
	}
	sort.Strings(found.BundleKids)
	return found, nil
}
