//! spiffe-entra: JWT-SVIDs in, Microsoft Entra access tokens out, over a Unix socket.
