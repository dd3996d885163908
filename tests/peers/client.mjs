// An unmodified @grpc/grpc-js client. Usage: node client.mjs PROTO_DIR TARGET NAME -> the token's fingerprint
//                                            node client.mjs PROTO_DIR TARGET NAME release -> whether the issuer revoked it
import { createHash } from 'node:crypto';
import grpc from '@grpc/grpc-js';
import loader from '@grpc/proto-loader';

const [protos, target, name, what] = process.argv.slice(2);
const definition = loader.loadSync('keybearer/v1/credentials.proto', { includeDirs: [protos], keepCase: true });
const { Credentials } = grpc.loadPackageDefinition(definition).keybearer.v1;
const client = new Credentials(target, grpc.credentials.createInsecure());
const metadata = new grpc.Metadata();
metadata.set('keybearer', 'v1');
client[what === 'release' ? 'Release' : 'Get']({ name }, metadata, { deadline: Date.now() + 20000 }, (error, answer) => {
  if (error) {
    console.log(`code ${error.code}`);
    process.exit(1);
  }
  if (what === 'release') {
    console.log(`revoked ${answer.revoked === true}`);
  } else {
    console.log(createHash('sha256').update(answer.credential.access_token.token).digest('hex').slice(0, 32));
  }
  client.close();
});
